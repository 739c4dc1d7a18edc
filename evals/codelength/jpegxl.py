"""JPEG files recompressed losslessly by JPEG XL's reference encoder: the yardstick for a model.

`cjxl` is part of libjxl (Debian: libjxl-tools). Nothing here needs it to be installed.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tempfile
from typing import NamedTuple

_TIMEOUT = 600.0  # seconds an image
_CODESTREAM = b"\xff\x0a"


class JpegXlError(ValueError):
    """cjxl did not make of a file what it should."""


class Transcoded(NamedTuple):
    """Sizes in bytes.

    Attributes:
      file: the whole .jxl file, from which the JPEG file comes back byte for byte.
      codestream: the part of it that holds the image, without what only JPEG files need (Huffman
        tables, restart markers, padding bits).
    """

    file: int
    codestream: int


def version() -> str | None:
    """What `cjxl --version` says, or None if it is not installed."""
    if shutil.which("cjxl") is None:
        return None
    told = subprocess.run(["cjxl", "--version"], capture_output=True, text=True, check=False)
    return (told.stdout or told.stderr).splitlines()[0]


def transcode(file: bytes, effort: int = 7) -> Transcoded:
    """Recompresses a JPEG file. Raises JpegXlError if cjxl is not there, or cannot."""
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
            raise JpegXlError(f"byte {at} of a JPEG XL file begins no whole box")
        if kind in (b"jxlc", b"jxlp"):
            total += size - begin - (4 if kind == b"jxlp" else 0)  # a part begins with its number
        at += size
    if not total:
        raise JpegXlError("the file has no JPEG XL codestream")
    return total
