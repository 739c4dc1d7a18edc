"""Example: python -m evals.compression --workdir=runs/digits --out=evaluation [--archive]

Compares a model as a lossless compressor of files with other codes: bytes per image by the model's
log-likelihood, of the files themselves, of the files without restart markers, and of JPEG XL's
lossless recompression (if `cjxl` is installed). Without --images it uses the eval split of the run.

--archive also encodes the files with the model's probabilities into OUT/archive.jlma, decodes them
and compares byte for byte. --restore=FILE writes the files of an archive to --out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals.codelength import archive, jpegxl, likelihoods
from evals.codelength.arithmetic import CodingError
from evals.codelength.conditioning import resolve_conditioning, start_tokens
from evals.codelength.likelihoods import Scored
from evals.codelength.sizes import TITLES, Sizes, stored_sizes
from evals.inputs.documents import Documents
from evals.likelihood import define_flags, load_inputs, scoring_command
from evals.reporting.numbers import with_error
from evals.reporting.results import make_result, write_json
from jpeglm_jax.generation.scoring import Scorer
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

ARCHIVE = "archive.jlma"


def compression(
    model: TrainedModel,
    documents: Documents,
    out: epath.PathLike,
    *,
    conditioning: str = "auto",
    batch_size: int = 16,
    stride: int = 0,
    write_archive: bool = False,
) -> dict[str, Any]:
    """Compares sizes and writes compression.json to a folder.

    Args:
      model: the compressor.
      documents: of the model's representation.
      out: folder to write.
      conditioning: see `resolve_conditioning`.
      batch_size: documents or rows per batch.
      stride: of the windows of long documents, see `Scorer`.
      write_archive: also write an archive, read it back and compare.

    Returns:
      The contents of compression.json: for each name in `TITLES` NAME_per_image, the mean over the
      images, and NAME_over_stream where there is a codec, with their standard errors.

    Raises:
      ValueError (CodingError): no image can be read, or the archive does not restore the files.
    """
    representation = model.representation
    conditioning = resolve_conditioning(conditioning, representation, documents)
    if write_archive and conditioning == "marginal":
        raise ValueError(
            "conditioning is 'marginal', but an archive needs one start token; use label or none"
        )
    scorer = Scorer(model, batch_size=batch_size, stride=stride)
    scored = likelihoods.score_all(representation, documents, conditioning, scorer)
    sizes, missing = stored_sizes(representation, [each.document for each in scored])
    sizes["model_bytes"] = [each.bits / 8 for each in scored]
    facts = likelihoods.facts(model, documents, conditioning, scorer, scored)
    of = {**facts.pop("settings"), "jpegxl": jpegxl.version()}
    warnings = facts.pop("warnings")
    given = {"conditioning": conditioning, "batch_size": batch_size, "stride": stride}
    command_text = scoring_command(
        "evals.compression", model, documents, out, given, archive=write_archive or None
    )
    if write_archive:
        codec = archive.Codec(model, batch_size=batch_size, stride=stride)
        path = epath.Path(out) / ARCHIVE
        sizes["archive_bytes"], facts["archive"] = _archive(
            model, codec, scored, conditioning, path
        )
    else:
        missing["archive_bytes"] = "not requested; give --archive"
    found = make_result(
        "compression",
        command_text,
        of,
        {**_means(sizes), **likelihoods.summary(scored, representation.num_dimensions), **facts},
        versions=checkpoint.versions(),
        warnings=warnings,
        not_computed=missing,
    )
    epath.Path(out).mkdir(parents=True, exist_ok=True)
    write_json(epath.Path(out) / "compression.json", found)
    return found


def _means(sizes: Sizes) -> dict[str, float | None]:
    stream = np.array(sizes.get("stream_bytes", ()))
    result: dict[str, float | None] = {}
    for name in TITLES:
        if name not in sizes:
            continue
        values = np.array(sizes[name], np.float64)
        result[f"{name}_per_image"] = float(values.mean())
        ones = np.ones_like(values)
        result[f"{name}_per_image_standard_error"] = likelihoods.ratio_error(values, ones)
        if stream.size:
            result[f"{name}_over_stream"] = float(values.sum() / stream.sum())
            result[f"{name}_over_stream_standard_error"] = likelihoods.ratio_error(values, stream)
    return result


def _archive(
    model: TrainedModel,
    codec: archive.Codec,
    scored: Sequence[Scored],
    conditioning: str,
    path: epath.Path,
) -> tuple[list[float], dict[str, Any]]:
    """Writes an archive: (bytes of each document's stream and its size field, facts for a report).

    Raises CodingError if the archive does not restore every file byte for byte.
    """
    representation = model.representation
    documents = [
        (start_tokens(conditioning, representation, document)[0], document.tokens)
        for document, _ in scored
    ]
    keys = [document.key for document, _ in scored]
    coded = archive.write_archive(path, model, codec, documents, keys)
    restored = archive.read_archive(path, model)
    for (key, tokens), (_, expected) in zip(restored, documents, strict=True):
        if representation.to_bytes(tokens) != representation.to_bytes(expected):
            raise CodingError(f"{path} does not restore {key} byte for byte")
    sizes = [float(len(archive.with_size(each.stream))) for each in coded]
    total, likelihood = sum(sizes), sum(each.bits for each in scored) / 8
    return sizes, {
        "file": path.name,
        "bytes": path.stat().length,
        "files_restored": len(restored),
        "bytes_over_likelihood_per_image": (total - likelihood) / len(sizes),
        "over_likelihood": total / likelihood - 1,
    }


def restore(model: TrainedModel, path: epath.PathLike, out: epath.PathLike) -> int:
    """Writes the files of an archive, numbered, and their names to names.txt; returns their number.

    Raises CodingError if it is not an archive of this model.
    """
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    documents = archive.read_archive(path, model)
    names = []
    for number, (key, tokens) in enumerate(documents):
        name = f"{number:06d}{model.representation.suffix}"
        (out / name).write_bytes(model.representation.to_bytes(tokens))
        names.append(f"{name}\t{key}\n")
    (out / "names.txt").write_text("".join(names))
    return len(documents)


def table(result: dict[str, Any]) -> str:
    """Formats compression.json for a terminal."""
    lines = [f"{'':42}{'bytes per image':>24}{'of the stream':>15}"]
    for name, title in TITLES.items():
        value = result.get(f"{name}_per_image")
        if value is not None:
            cell = with_error(value, result[f"{name}_per_image_standard_error"])
            ratio = result.get(f"{name}_over_stream")
            share = "" if ratio is None else f"{ratio:.1%}"
            lines.append(f"{title:42}{cell:>24}{share:>15}".rstrip())
    lines += [
        f"not computed: {TITLES[name]}: {reason}" for name, reason in result["not_computed"].items()
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
    model, documents = load_inputs(values)
    result = compression(
        model,
        documents,
        values.out,
        conditioning=values.conditioning,
        batch_size=values.batch_size,
        stride=values.stride,
        write_archive=values.archive,
    )
    print(table(result))


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_boolean("archive", False, "Also write an archive, read it back and compare.")
    flags.DEFINE_string("restore", None, "Instead: an archive whose files are written to --out.")
    command.run(main, ShardError)
