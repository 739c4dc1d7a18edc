"""Sizes of the same documents under other codes, which `evals.compression` compares with a model.

The stream that the model sees, the whole file, both without restart markers, and JPEG XL.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator, Sequence

import tqdm

from data_pipelines.representations.base import Representation
from data_pipelines.utils.cpus import num_cpus
from evals.codelength import jpegxl
from evals.inputs.documents import Document

# Every size that is compared, in the order of the table, with its title there.
TITLES = {
    "model_bytes": "model log-likelihood",
    "archive_bytes": "arithmetic coder with the model",
    "stream_bytes": "modelled stream",
    "stream_without_restarts_bytes": "modelled stream without restart markers",
    "file_bytes": "whole file",
    "file_without_restarts_bytes": "whole file without restart markers",
    "jpegxl_codestream_bytes": "JPEG XL of the file: codestream",
    "jpegxl_file_bytes": "JPEG XL of the file: reversible",
}

_RESTARTS = ("stream_without_restarts_bytes", "file_without_restarts_bytes")
_JPEG_XL = ("jpegxl_codestream_bytes", "jpegxl_file_bytes")

Sizes = dict[str, list[float]]  # name -> bytes of each document


def stored_sizes(
    representation: Representation, documents: Sequence[Document]
) -> tuple[Sizes, dict[str, str]]:
    """Sizes of documents as files and streams.

    Args:
      representation: of the documents.
      documents: the documents.

    Returns:
      (sizes by name, name -> reason for those that cannot be computed).
    """
    if not representation.suffix:
        raise ValueError(f"{representation.name} documents have no files to compare with")
    files = [representation.to_bytes(each.tokens) for each in documents]
    sizes: Sizes = {"file_bytes": [float(len(file)) for file in files]}
    if any(each.codec_bytes for each in documents):
        sizes["stream_bytes"] = [float(each.codec_bytes) for each in documents]
    related = [representation.related_sizes(each.tokens) for each in documents]
    for name in related[0] if related else ():
        sizes[name] = [each[name] for each in related]
    missing = dict.fromkeys(
        set(_RESTARTS) - sizes.keys(), "the files have no restart markers to leave out"
    )
    if "stream_bytes" not in sizes:
        missing["stream_bytes"] = f"{representation.name} documents are no codec's stream"
    if representation.suffix != ".jpg":
        missing |= dict.fromkeys(_JPEG_XL, "the files are not JPEG")
    elif jpegxl.version() is None:
        missing |= dict.fromkeys(_JPEG_XL, "cjxl is not installed (Debian: libjxl-tools)")
    else:
        transcoded = list(_transcoded(files))
        sizes["jpegxl_codestream_bytes"] = [each.codestream for each in transcoded]
        sizes["jpegxl_file_bytes"] = [each.file for each in transcoded]
    return sizes, missing


def _transcoded(files: Sequence[bytes]) -> Iterator[jpegxl.Transcoded]:
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        done = pool.map(jpegxl.transcode, files)
        yield from tqdm.tqdm(done, total=len(files), unit="image", desc="JPEG XL")
