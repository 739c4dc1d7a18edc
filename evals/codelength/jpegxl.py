"""Lossless recompression of JPEG files by JPEG XL's reference encoder, the baseline of `sizes`.

`cjxl` is part of libjxl (Debian: libjxl-tools); it is optional.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tempfile
from typing import NamedTuple

_TIMEOUT = 600.0  # seconds per image
_CODESTREAM = b"\xff\x0a"


class JpegXlError(ValueError):
    """cjxl is missing or failed, or its output has no codestream."""


class Transcoded(NamedTuple):
    """Sizes in bytes.

    Attributes:
      file: the whole .jxl file, from which the JPEG file can be restored byte for byte.
      codestream: the part that holds the image, without what only the restored JPEG file needs
        (Huffman tables, restart markers, padding bits).
    """

    file: int
    codestream: int


def version() -> str | None:
    """The first line of `cjxl --version`, or None if it is not installed."""
    if shutil.which("cjxl") is None:
        return None
    result = subprocess.run(["cjxl", "--version"], capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).splitlines()[0]


def transcode(file: bytes, effort: int = 7) -> Transcoded:
    """Recompresses a JPEG file. Raises JpegXlError if cjxl is missing or fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "image.jpg"), pathlib.Path(folder, "image.jxl")
        source.write_bytes(file)
        try:
            done = subprocess.run(
                [*("cjxl", str(source), str(target)), "--lossless_jpeg=1", f"--effort={effort}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise JpegXlError(f"cjxl cannot be run: {error}") from error
        if done.returncode or not target.is_file():
            raise JpegXlError(f"cjxl cannot recompress a file: {done.stderr.strip()[-300:]}")
        result = target.read_bytes()
    return Transcoded(len(result), codestream_size(result))


def codestream_size(file: bytes) -> int:
    """Bytes of the codestream in a JPEG XL file: bare, or in boxes (ISO/IEC 18181-2, 9.1).

    Raises JpegXlError for anything else.
    """
    if file.startswith(_CODESTREAM):
        return len(file)
    at = total = 0
    while at < len(file):
        size, kind, begin = int.from_bytes(file[at : at + 4], "big"), file[at + 4 : at + 8], 8
        if size == 1:
            size, begin = int.from_bytes(file[at + 8 : at + 16], "big"), 16
        elif size == 0:  # to the end
            size = len(file) - at
        if size < begin or at + size > len(file):
            raise JpegXlError(f"byte {at} of a JPEG XL file does not begin a complete box")
        if kind in (b"jxlc", b"jxlp"):
            total += size - begin - (4 if kind == b"jxlp" else 0)  # a part begins with its number
        at += size
    if not total:
        raise JpegXlError("the file has no JPEG XL codestream")
    return total
