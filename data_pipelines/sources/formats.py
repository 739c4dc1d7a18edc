"""Which file names are taken for images: every suffix that the installed Pillow decodes itself."""

from __future__ import annotations

import functools
import os

# Formats that Pillow registers and cannot decode on its own: the first runs Ghostscript on
# whatever the file says, the rest only identify the file or need a handler of the user's.
_NOT_DECODED = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with their dot."""
    from PIL import Image

    Image.init()
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_DECODED
    )


def suffix_of(name: str) -> str:
    """The suffix of a file name or path in lower case, with its dot; empty if it has none."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    return suffix_of(name) in image_suffixes()
