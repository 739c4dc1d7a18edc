"""Sizes of the same documents under other codes, which `evals.compression` compares with a model.

The stream that the model sees, the whole file, both without restart markers, and JPEG XL.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from data_pipelines.representations.base import Representation
from data_pipelines.representations.jpeg import coefficients
from data_pipelines.representations.jpeg.representation import JpegRepresentation
from data_pipelines.representations.tokenizer import ByteTokenizer
from data_pipelines.utils.cpus import num_cpus
from evals.codelength import jpegxl

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

Sizes = dict[str, list[float]]  # name -> bytes of each document


def stored_sizes(
    representation: Representation, documents: Sequence[np.ndarray]
) -> tuple[Sizes, dict[str, str]]:
    """Sizes of documents as files and streams.

    Args:
      representation: of the documents.
      documents: tokens, integer [n] each.

    Returns:
      (sizes by name, name -> reason for those that cannot be computed).
    """
    files = [representation.to_bytes(tokens) for tokens in documents]
    sizes: Sizes = {
        "stream_bytes": [float(representation.byte_lengths[each].sum()) for each in documents],
        "file_bytes": [float(len(file)) for file in files],
    }
    missing: dict[str, str] = {}
    without_restarts = ("stream_without_restarts_bytes", "file_without_restarts_bytes")
    jpeg_xl = ("jpegxl_codestream_bytes", "jpegxl_file_bytes")
    if not isinstance(representation, JpegRepresentation):
        return sizes, dict.fromkeys((*without_restarts, *jpeg_xl), "the files are not JPEG")
    if representation.restart_interval:
        plain = [_without_restarts(representation, file) for file in files]
        for name, values in zip(without_restarts, zip(*plain, strict=True), strict=True):
            sizes[name] = list(values)
    else:
        missing |= dict.fromkeys(without_restarts, "the files have no restart markers")
    if jpegxl.version() is None:
        missing |= dict.fromkeys(jpeg_xl, "cjxl is not installed (Debian: libjxl-tools)")
    else:
        transcoded = list(_transcoded(files))
        sizes["jpegxl_codestream_bytes"] = [each.codestream for each in transcoded]
        sizes["jpegxl_file_bytes"] = [each.file for each in transcoded]
    return sizes, missing


def _without_restarts(representation: JpegRepresentation, file: bytes) -> tuple[float, float]:
    """Bytes of the (stream, file) of the same coefficients without restart markers."""
    plain = coefficients.with_restart_interval(file, representation.format, 0)
    bare = dataclasses.replace(representation, restart_interval=0, tokenizer=ByteTokenizer())
    return float(bare.from_bytes(plain).size), float(len(plain))


def _transcoded(files: Sequence[bytes]) -> Iterator[jpegxl.Transcoded]:
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        done = pool.map(jpegxl.transcode, files)
        yield from tqdm.tqdm(done, total=len(files), unit="image", desc="JPEG XL")
