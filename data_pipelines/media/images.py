"""Decodes image files and converts them to 8-bit sRGB or grey pixels.

`open_image` limits the size and decodes the whole file; `normalise` applies orientation, colour
profile, palette and transparency, and scales samples to 8 bits; `fit` also crops and resizes. A
representation encodes the result.

Limitation: a JPEG with flipped bits in its scan decodes without an error, because libjpeg
resynchronises and Pillow does not report it. Only missing data is detected.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 2**28
# Pillow refuses more than twice its own limit, also for pictures inside a container (ICO), and
# warns above it: both limits are ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Pillow's limit on a colour profile is 1 MiB; profiles with large tables exceed it.
PngImagePlugin.MAX_TEXT_CHUNK = 2**26

Mode = Literal["RGB", "L"]

# Formats that Pillow decodes itself. Not listed: formats that start another program (EPS, WMF) or
# need one to decode (GRIB, BUFR, HDF5, MPEG). MPO is opened as JPEG.
# fmt: off
_FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM",
    "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP",
)
# fmt: on
_WHITE = (255, 255, 255, 255)
_TIFF_BITS, _TIFF_PHOTOMETRIC, _MIN_IS_WHITE = 258, 262, 0
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageError(ValueError):
    """An image cannot be used; the message is one sentence with the reason."""


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file completely; an animation gives its first frame.

    Args:
      data: the whole file.
      max_pixels: maximum width x height, at most MAX_PIXELS, checked in the header before decoding.

    Returns the loaded image, as stored: see `normalise`.

    Raises:
      ImageError: not an image, an unknown format, too many pixels, truncated or corrupt.
    """
    if not data:
        raise ImageError("the file is empty; expected an image")
    image = _identify(_without_png_text(data))
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"the image has {width} x {height} pixels, expected at most {max_pixels} in all; "
            "scale it down or raise max_pixels"
        )
    try:
        image.load()
    except Exception as error:
        # Decoders raise many types of errors on damaged data (OSError, SyntaxError, struct.error,
        # IndexError, ...); each of them means that this file is unusable.
        raise ImageError(f"the {image.format} image does not decode: {error}") from error
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and _png_depth(data) == 16:
        # Pillow takes the upper byte of each sample, but not of the transparent colour.
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
    return image


def _png_depth(data: bytes) -> int:
    """Bits per sample that a PNG file's header states; 0 for another file."""
    return data[24] if data.startswith(_PNG) else 0


def _identify(data: bytes) -> Image.Image:
    """Opens the image and reads its header without decoding."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"found {len(data)} bytes in no supported image format; expected one of "
            f"{', '.join(_FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large to decode: {error}") from error
    except Exception as error:
        raise ImageError(f"the image's header cannot be read: {error}") from error


def _without_png_text(data: bytes) -> bytes:
    """A PNG file without its text chunks, which Pillow limits and `normalise` drops anyway.

    Other files, and everything from a damaged chunk on, are returned as they are.
    """
    if not data.startswith(_PNG):
        return data
    kept, start, at = [], 0, len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if data[at + 4 : at + 8] in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join([*kept, data[start:]]) if kept else data


def normalise(image: Image.Image, mode: Mode = "RGB") -> Image.Image:
    """Converts an image to the pixels that a viewer shows, 8-bit sRGB ("RGB") or grey ("L").

    Steps, in order: take the first frame; resolve palettes; convert the ICC profile to sRGB
    (relative colorimetric; a broken profile or one of another colour space is ignored, as in
    browsers); composite transparency on white; apply the EXIF orientation.

    Grey samples of more than 8 bits are rounded to 8 after the profile. Integers are read as
    0-65535, or in the range of the bits that a TIFF file states; floating-point samples as 0-1, or
    as 0-255 if any exceeds 1.

    Returns a new image without metadata. Raises ImageError for samples that are not finite or not
    in the range.
    """
    if mode not in ("RGB", "L"):
        raise ValueError(f'found mode {mode!r}, expected "RGB" or "L"')
    if getattr(image, "is_animated", False):
        image.seek(0)
    orientation = _orientation(image)
    deep = image.mode.startswith("I") or image.mode == "F"
    pixels = _composite(_deep_grey(image) if deep else _to_srgb(image))
    clean = pixels.convert(mode)  # always a new image
    clean.info = {}  # drops comments, profiles and EXIF
    return clean if orientation is None else clean.transpose(orientation)


def fit(image: Image.Image, mode: Mode, size: tuple[int, int] | None) -> Image.Image:
    """The pixels of an image that are encoded: `normalise`, then crop and resize.

    The largest centred crop of the right shape is resized with Pillow's antialiased bilinear
    filter, as in the released script of JPEG-LM. Representations that use it encode equal pixels.

    Args:
      image: of any size and mode.
      mode: "RGB" or "L".
      size: (width, height); None keeps the image's own.

    Raises ValueError for a value that is no image, an image without pixels, and as `normalise`.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"found a {type(image).__name__}, expected a PIL image")
    if min(image.size) < 1:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels, expected at least 1 x 1"
        )
    image = normalise(image, mode)
    if size is None:
        return image
    image = _centre_crop(image, size)
    return image.resize(size, Image.Resampling.BILINEAR) if image.size != size else image


def _centre_crop(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """The largest centred crop with the aspect ratio of shape (width, height)."""
    width, height = image.size
    if width * shape[1] > height * shape[0]:
        width = max(1, round(height * shape[0] / shape[1]))
    else:
        height = max(1, round(width * shape[1] / shape[0]))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that the EXIF orientation asks for, or None."""
    try:
        value = image.getexif().get(0x0112)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return None  # unreadable EXIF is ignored
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(value)  # type: ignore[arg-type]


def _deep_grey(image: Image.Image) -> Image.Image:
    """Converts grey samples of more than 8 bits to 8-bit sRGB, and keeps transparency."""
    samples = np.asarray(image, np.float64)
    levels = _levels(image, samples)
    profile = image.info.get("icc_profile")
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[np.newaxis])
    curve = np.asarray(_apply_profile(grey, profile).convert("RGB") if profile else grey)[0]
    # The profile at the 256 levels, and between them by interpolation: as for 8-bit samples.
    channels = curve.reshape(256, -1).T
    values = [np.interp(levels, np.arange(256), channel) for channel in channels]
    eight_bits = np.rint(np.stack(values, axis=-1)).astype(np.uint8)
    converted = Image.fromarray(eight_bits.squeeze(-1) if len(values) == 1 else eight_bits)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
        converted = converted.convert("RGBA")
        converted.putalpha(Image.fromarray(alpha))
    return converted


def _levels(image: Image.Image, samples: np.ndarray) -> np.ndarray:
    """Scales samples to 0..255. Raises ImageError for samples outside the range of the format."""
    if not np.isfinite(samples).all():
        raise ImageError("the image has samples that are not finite; expected numbers")
    tags = getattr(image, "tag_v2", {})
    low, high = samples.min(initial=0.0), samples.max(initial=0.0)
    if image.mode == "F":
        largest = 1.0 if high <= 1.0 else 255.0
    else:
        bits = tags.get(_TIFF_BITS, (16,))[0]
        largest = float(2 ** min(bits, 16) - 1)
    # Filters of floating-point images overshoot a little.
    margin = largest / 255 if image.mode == "F" else 0.0
    if low < -margin or high > largest + margin:
        raise ImageError(
            f"the image has {'floating-point' if image.mode == 'F' else 'integer'} samples from "
            f"{low:g} to {high:g}, expected 0 to {largest:g}"
            + (" or 0 to 1" if image.mode == "F" else "")
            + ": scale them"
        )
    levels = np.clip(samples / largest, 0.0, 1.0) * 255.0
    return 255.0 - levels if tags.get(_TIFF_PHOTOMETRIC) == _MIN_IS_WHITE else levels


def _to_srgb(image: Image.Image) -> Image.Image:
    """Converts colours to sRGB; an image without profile and transparency keeps its mode."""
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
    """Converts an opaque image from its profile; unchanged if that is sRGB or does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
            return image  # converting would only add rounding errors
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
    """Composites an image with transparency on white."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image
