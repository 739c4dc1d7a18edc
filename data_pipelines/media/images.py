"""Image files of any kind -> plain pixels, before any codec sees them.

`open_image` bounds and fully decodes a file; `normalise` turns what a camera or an editor stores
(orientation, profile, palette, alpha, ink, depth) into the sRGB or grey pixels that it shows.

What cannot be found here: a JPEG whose scan has flipped bits decodes without an error, because
libjpeg resynchronises and says nothing through Pillow. Only missing data is seen.
"""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

Mode = Literal["RGB", "L"]

# Formats that Pillow decodes itself. Left out are those that start another program (EPS, WMF) or
# hold no pixels without one (GRIB, BUFR, HDF5, MPEG). MPO is opened as JPEG.
# fmt: off
_FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM",
    "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP",
)
# fmt: on
_WHITE = (255, 255, 255, 255)


class ImageError(ValueError):
    """An image that cannot be used; the message is one sentence that says why."""


def open_image(data: bytes, *, max_pixels: int = 2**28) -> Image.Image:
    """Decodes an image file completely; of an animation, the first frame.

    Args:
      data: the whole file.
      max_pixels: width x height allowed, judged from the header, before anything is decoded.
        Pillow's own limit, 2 * `PIL.Image.MAX_IMAGE_PIXELS` (179 million), holds as well.

    Returns the loaded image, as stored: see `normalise`.

    Raises:
      ImageError: no image, an unknown format, too many pixels, cut short or corrupt.
    """
    if not data:
        raise ImageError("the file is empty; expected an image")
    image = _identify(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"the image has {width} x {height} pixels, expected at most {max_pixels} in all; "
            "scale it down or raise max_pixels"
        )
    try:
        image.load()
    except Exception as error:
        # Decoders fail in many ways on damaged data (OSError, SyntaxError, struct.error,
        # IndexError, ...); whichever it is, this one file is unusable.
        raise ImageError(f"the {image.format} image does not decode: {error}") from error
    return image


def _identify(data: bytes) -> Image.Image:
    """The image, its header read and nothing decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"found {len(data)} bytes that are no image known here; expected one of "
            f"{', '.join(_FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large to decode: {error}") from error
    except Exception as error:
        raise ImageError(f"the image's header cannot be read: {error}") from error


def normalise(image: Image.Image, mode: Mode = "RGB") -> Image.Image:
    """The pixels that a viewer shows, as 8-bit sRGB ("RGB") or grey ("L"), and nothing else.

    In this order: the first frame; samples of more than 8 bits scaled to 8; palettes resolved; the
    ICC profile converted to sRGB (relative colorimetric; a profile that is broken or of another
    colour space is taken for absent, as browsers do); alpha composited on white; EXIF orientation
    applied. Integer samples wider than 8 bits are taken to fill 0-65535; floating-point samples
    0-1, or 0-255 if any exceeds 1.

    Returns a new image without metadata. Raises ImageError for samples without a meaning here.
    """
    if mode not in ("RGB", "L"):
        raise ValueError(f'found mode {mode!r}, expected "RGB" or "L"')
    if getattr(image, "is_animated", False):
        image.seek(0)
    orientation = _orientation(image)
    pixels = _composite(_to_srgb(_to_eight_bits(image)))
    clean = pixels.convert(mode)  # always a new image, of pixels and `info`
    clean.info = {}  # which would carry comments, profiles and EXIF along
    return clean if orientation is None else clean.transpose(orientation)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that EXIF asks for, or None."""
    try:
        value = image.getexif().get(0x0112)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return None  # unreadable EXIF says nothing about the pixels
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(value)  # type: ignore[arg-type]


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 or 32 bits a sample as "L"; others as they are."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    samples = np.asarray(image, np.float64)
    if not np.isfinite(samples).all():
        raise ImageError("the image has samples that are not finite; expected numbers")
    largest = 65535.0
    if image.mode == "F":
        largest = 1.0 if samples.max(initial=0.0) <= 1.0 else 255.0
    scaled = np.rint(np.clip(samples / largest, 0.0, 1.0) * 255.0)
    return Image.fromarray(scaled.astype(np.uint8))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours converted to sRGB (RGB, RGBA, L, LA or what has no profile and no alpha)."""
    profile = image.info.get("icc_profile")
    if image.mode == "P" or image.has_transparency_data:
        image = image.convert("RGBA")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is None only when converting in place
        return converted
    if not profile:
        return image
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        opaque = _apply_profile(image.convert(image.mode[:-1]), profile).convert("RGB")
        opaque.putalpha(alpha)
        return opaque
    return _apply_profile(image, profile)


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """An opaque image converted from its profile; unchanged if that is sRGB or does not fit it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
            return image  # converting would only round
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert converted is not None  # it is None only when converting in place
    return converted


def _composite(image: Image.Image) -> Image.Image:
    """The image on white, if it has alpha."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image
