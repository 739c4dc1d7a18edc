"""Example: python -m evals.compression --workdir=runs/digits --out=evaluation [--archive]

The model as a compressor of real files: what its log-likelihood comes to in bytes a file, beside
the files themselves, the same without restart markers, and JPEG XL's lossless recompression (where
`cjxl` is installed). Without --images these are the run's own held-out documents.

--archive also codes the files with the model's probabilities into OUT/archive.jlma, reads them back
and compares byte for byte. --restore=FILE gives the files of an archive back into --out.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags
from etils import epath

from data_pipelines.representations.base import Representation
from data_pipelines.representations.jpeg import coefficients
from data_pipelines.representations.jpeg.representation import JpegRepresentation
from data_pipelines.representations.tokenizer import ByteTokenizer
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals import likelihood as bits
from evals.codelength import archive as coding
from evals.codelength import jpegxl
from evals.codelength.scoring import Scorer
from evals.inputs.documents import Documents
from evals.likelihood import Scored
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

ARCHIVE = "archive.jlma"

# What is compared, in the order of the table, and how it is called there.
TITLES = {
    "model_bytes": "the model's log-likelihood",
    "archive_bytes": "arithmetic coder with the model",
    "stream_bytes": "modelled stream",
    "stream_without_restarts_bytes": "modelled stream without restart markers",
    "file_bytes": "whole file",
    "file_without_restarts_bytes": "whole file without restart markers",
    "jpegxl_codestream_bytes": "JPEG XL of the file: its codestream",
    "jpegxl_file_bytes": "JPEG XL of the file: reversible",
}

Sizes = dict[str, list[float]]  # name -> bytes of each document


def compression(
    model: TrainedModel,
    documents: Documents,
    out: epath.PathLike,
    *,
    given: str = "auto",
    batch_size: int = 16,
    stride: int = 0,
    archive: bool = False,
) -> dict[str, Any]:
    """Compares sizes and writes compression.json to a folder.

    Args:
      model: the compressor.
      documents: of the model's representation.
      out: folder to write.
      given: what the model is told of each, see `likelihood.choose_given`.
      batch_size: documents or rows computed together.
      stride: of the windows of long documents, see `scoring`.
      archive: also code the files in fact, and read them back.

    Returns:
      What is in compression.json: of each name in `TITLES` the mean over the images, NAME_per_image
      with its standard error, and NAME_over_stream.

    Raises:
      ValueError (CodingError): nothing to read, or the archive did not give the files back.
    """
    given = bits.choose_given(given, model.representation, documents)
    if archive and given == "marginal":
        raise ValueError("an archive is coded under one start token; give label or none")
    scorer = Scorer(model, batch_size=batch_size, stride=stride)
    scored = bits.score_all(model, documents, given, scorer)
    sizes, missing = _stored(model.representation, scored)
    sizes["model_bytes"] = [each.bits / 8 for each in scored]
    facts = bits.facts(model, documents, given, scorer, scored)
    facts["settings"]["jpegxl"] = jpegxl.version()
    if archive:
        path = epath.Path(out) / ARCHIVE
        sizes["archive_bytes"], facts["archive"] = _archived(
            model, scored, given, path, batch_size, stride
        )
    else:
        missing["archive_bytes"] = "not asked for; give --archive"
    result = {
        **_means(sizes),
        **bits.summary(scored, model.representation.byte_lengths),
        "not_computed": missing,
        **facts,
    }
    epath.Path(out).mkdir(parents=True, exist_ok=True)
    bits.write_json(epath.Path(out) / "compression.json", result)
    return result


def _means(sizes: Sizes) -> dict[str, float | None]:
    stream = np.array(sizes["stream_bytes"])
    result: dict[str, float | None] = {}
    for name in TITLES:
        if name not in sizes:
            continue
        values = np.array(sizes[name], np.float64)
        result[f"{name}_per_image"] = float(values.mean())
        ones = np.ones_like(values)
        result[f"{name}_per_image_standard_error"] = bits.ratio_error(values, ones)
        result[f"{name}_over_stream"] = float(values.sum() / stream.sum())
        result[f"{name}_over_stream_standard_error"] = bits.ratio_error(values, stream)
    return result


def _stored(
    representation: Representation, scored: Sequence[Scored]
) -> tuple[Sizes, dict[str, str]]:
    """Sizes of files and streams, and what of them could not be found out, each with the reason."""
    tokens = [each.document.tokens for each in scored]
    files = [representation.to_bytes(each) for each in tokens]
    sizes: Sizes = {
        "stream_bytes": [float(representation.byte_lengths[each].sum()) for each in tokens],
        "file_bytes": [float(len(file)) for file in files],
    }
    missing: dict[str, str] = {}
    without = ("stream_without_restarts_bytes", "file_without_restarts_bytes")
    jxl = ("jpegxl_codestream_bytes", "jpegxl_file_bytes")
    if not isinstance(representation, JpegRepresentation):
        return sizes, dict.fromkeys((*without, *jxl), "the files are not JPEG")
    if representation.restart_interval:
        plain = [_without_restarts(representation, file) for file in files]
        for name, values in zip(without, zip(*plain, strict=True), strict=True):
            sizes[name] = list(values)
    else:
        missing |= dict.fromkeys(without, "the files have no restart markers")
    if jpegxl.version() is None:
        missing |= dict.fromkeys(jxl, "cjxl is not installed (Debian: libjxl-tools)")
    else:
        transcoded = list(_in_threads(files))
        sizes["jpegxl_codestream_bytes"] = [each.codestream for each in transcoded]
        sizes["jpegxl_file_bytes"] = [each.file for each in transcoded]
    return sizes, missing


def _without_restarts(representation: JpegRepresentation, file: bytes) -> tuple[float, float]:
    """Bytes of the (stream, file) of the same coefficients without restart markers."""
    plain = coefficients.with_restart_interval(file, representation.format, 0)
    bare = dataclasses.replace(representation, restart_interval=0, tokenizer=ByteTokenizer())
    return float(bare.from_bytes(plain).size), float(len(plain))


def _in_threads(files: Iterable[bytes]) -> Iterator[jpegxl.Transcoded]:
    files = list(files)
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        done = pool.map(jpegxl.transcode, files)
        yield from tqdm.tqdm(done, total=len(files), unit="image", desc="JPEG XL")


def _archived(
    model: TrainedModel,
    scored: Sequence[Scored],
    given: str,
    path: epath.Path,
    batch_size: int,
    stride: int,
) -> tuple[list[float], dict[str, Any]]:
    """(bytes of each document's stream with its size, what is to be known of the archive).

    Raises CodingError if the archive does not give back every file to the byte.
    """
    representation = model.representation
    framed = [
        (bits.start_tokens(given, representation, document)[0], document.tokens)
        for document, _ in scored
    ]
    keys = [document.key for document, _ in scored]
    codec = coding.Codec(model, batch_size=batch_size, stride=stride)
    coded = coding.write_archive(path, model, codec, framed, keys)
    back = coding.read_archive(path, model)
    for (key, tokens), (_, document_tokens) in zip(back, framed, strict=True):
        if representation.to_bytes(tokens) != representation.to_bytes(document_tokens):
            raise coding.CodingError(f"{path} does not give back {key}")
    sizes = [float(len(coding.framed(each.stream))) for each in coded]
    total, promised = sum(sizes), sum(each.bits for each in scored) / 8
    return sizes, {
        "file": path.name,
        "bytes": path.stat().length,
        "files_given_back": len(back),
        "bytes_over_likelihood_per_image": (total - promised) / len(sizes),
        "over_likelihood": total / promised - 1,
    }


def restore(model: TrainedModel, archive: epath.PathLike, out: epath.PathLike) -> int:
    """Writes the files of an archive, numbered, with their names in names.txt; returns how many.

    Raises CodingError if it is no archive of this model.
    """
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    found = coding.read_archive(archive, model)
    names = []
    for number, (key, tokens) in enumerate(found):
        name = f"{number:06d}{model.representation.suffix}"
        (out / name).write_bytes(model.representation.to_bytes(tokens))
        names.append(f"{name}\t{key}\n")
    (out / "names.txt").write_text("".join(names))
    return len(found)


def table(result: dict[str, Any]) -> str:
    """compression.json for a terminal."""
    lines = [f"{'':42}{'bytes an image':>24}{'of the stream':>15}"]
    for name, title in TITLES.items():
        value = result.get(f"{name}_per_image")
        if value is not None:
            error = result[f"{name}_per_image_standard_error"] or 0.0
            cell = f"{value:.2f} +- {error:.2f}"
            lines.append(f"{title:42}{cell:>24}{result[f'{name}_over_stream']:>15.1%}")
    lines += [
        f"not computed: {TITLES[name]}: {why}" for name, why in result["not_computed"].items()
    ]
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    if values.restore:
        model = checkpoint.load(values.workdir, values.step)
        print(f"{restore(model, values.restore, values.out)} files written to {values.out}")
        return
    model, documents = bits.open_both(values)
    result = compression(
        model,
        documents,
        values.out,
        given=values.given,
        batch_size=values.batch_size,
        stride=values.stride,
        archive=values.archive,
    )
    print(table(result))


if __name__ == "__main__":
    bits.define_flags()
    flags.DEFINE_boolean("archive", False, "Also code the files in fact, and read them back.")
    flags.DEFINE_string("restore", None, "Instead: an archive whose files to write to --out.")
    command.run(main)
