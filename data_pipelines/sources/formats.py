"""Decides by the suffix of a file name whether it is an image or a video.

Images: every suffix that the installed Pillow decodes itself. Videos: the suffixes of the
containers that `data_pipelines.media.videos` opens.
"""

from __future__ import annotations

import functools
import os

from data_pipelines.media import Kind

# Formats that Pillow registers but cannot decode itself: EPS runs Ghostscript on the file, the
# others are only identified or need an extra handler.
_NOT_DECODED = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})

# Formats without an opener of their own: a JPEG file with several pictures.
_OPENED_AS_JPEG = frozenset({"MPO"})


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with their dot."""
    from PIL import Image

    Image.init()
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name in _OPENED_AS_JPEG) and name not in _NOT_DECODED
    )


# fmt: off
_VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".m2ts",
    ".mts", ".vob", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".ogg", ".gif", ".y4m",
    ".h264", ".264", ".h265", ".hevc", ".ivf", ".mxf", ".dv", ".nut", ".rm", ".rmvb", ".obu",
})
# fmt: on


def suffix_of(name: str) -> str:
    """The suffix of a file name or path in lower case, with its dot; empty if it has none."""
    return os.path.splitext(name)[1].lower()


def is_media_name(name: str, kind: Kind) -> bool:
    return suffix_of(name) in (image_suffixes() if kind == "image" else _VIDEO_SUFFIXES)
