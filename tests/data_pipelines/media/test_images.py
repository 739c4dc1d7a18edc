"""Image files become the pixels that a viewer shows, or raise ImageError with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from data_pipelines.media.images import ImageError, normalise, open_image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def file_of(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def through_a_file(image, format="PNG", mode="RGB", **options):
    """The normalised pixels of an image that was saved and opened, as a list of rows."""
    return np.asarray(normalise(open_image(file_of(image, format, **options)), mode)).tolist()


def picture(width=6, height=4):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 40, y * 60, x * 0 + 90], -1).astype(np.uint8))


# Modes


def test_rgb_and_grey_pass_unchanged():
    assert through_a_file(picture()) == np.asarray(picture()).tolist()
    grey = picture().convert("L")
    assert through_a_file(grey, mode="L") == np.asarray(grey).tolist()
    assert np.array_equal(np.asarray(normalise(grey))[..., 0], grey)


def test_one_bit_is_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert through_a_file(image) == [[[0, 0, 0], [255, 255, 255]]]
    assert through_a_file(image, mode="L") == [[0, 255]]


def test_alpha_is_composited_on_white():
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert through_a_file(image) == [[list(RED), list(WHITE), [127, 127, 127]]]


def test_grey_with_alpha_is_composited_on_white():
    image = Image.new("LA", (2, 1), (10, 255))
    image.putpixel((1, 0), (10, 0))
    assert through_a_file(image) == [[[10, 10, 10], [255, 255, 255]]]
    assert through_a_file(image, mode="L") == [[10, 255]]


def palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    return image


def test_palettes_are_resolved():
    assert through_a_file(palette_image()) == [[list(RED), list(GREEN)]]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palettes_with_a_transparent_colour_become_white_there(format):
    assert through_a_file(palette_image(), format, transparency=1) == [[list(RED), list(WHITE)]]


def test_a_transparent_colour_of_rgb_and_grey_becomes_white():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert through_a_file(image, transparency=GREEN) == [[list(RED), list(WHITE)]]
    assert through_a_file(Image.new("L", (1, 1), 9), transparency=9, mode="L") == [[255]]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = through_a_file(image, "JPEG", quality=100)[0][0]
    assert pixel[0] > 240 and max(pixel[1:]) < 15, "red"


def test_sixteen_bits_are_scaled_not_cut():
    samples = np.array([[0, 257 * 7, 257 * 200 + 100, 65535]], np.uint16)
    image = Image.fromarray(samples)
    assert image.mode.startswith("I;16")
    for format in ("PNG", "TIFF"):
        assert through_a_file(image, format, "L") == [[0, 7, 200, 255]]
    assert normalise(Image.fromarray(samples.astype(np.int32)), "L").getpixel((2, 0)) == 200


@pytest.mark.parametrize(("largest", "expected"), [(1.0, [0, 64, 255]), (255.0, [0, 64, 255])])
def test_floats_are_read_as_parts_of_one_or_of_255(largest, expected):
    samples = np.array([[0, 0.25098, 1.0]], np.float32) * largest
    assert through_a_file(Image.fromarray(samples), "TIFF", "L") == [expected]


def test_samples_that_are_no_numbers_are_refused():
    with pytest.raises(ImageError, match="finite"):
        normalise(Image.fromarray(np.array([[np.nan]], np.float32)))


def test_other_colour_spaces_become_rgb():
    for mode in ("YCbCr", "HSV"):
        pixel = normalise(Image.new("RGB", (1, 1), RED).convert(mode)).getpixel((0, 0))
        assert np.abs(np.array(pixel) - RED).max() <= 3
    lab = normalise(Image.new("LAB", (1, 1), (255, 128, 128))).getpixel((0, 0))
    assert min(lab) > 245, "white"


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="expected"):
        normalise(picture(), "CMYK")


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "PNG"])
def test_exif_orientation_is_applied(orientation, format):
    # How the stored rows and columns are to be shown: TIFF 6.0, section 8, tag 274.
    shown = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = shown(np.asarray(picture())).tolist()
    assert through_a_file(picture(), format, exif=exif) == expected


def test_unreadable_exif_is_ignored():
    data = file_of(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff broken", quality=95)
    assert normalise(open_image(data)).size == picture().size


# Profiles


def icc_profile(primaries, gamma):
    """A minimal ICC v2 display profile: XYZ (D50) of red, green and blue, and one gamma."""

    def s15f16(*values):
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    xyz = b"XYZ \0\0\0\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78 + 1)
    tags = {
        b"desc": description + bytes(-len(description) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz + s15f16(0.9642, 1.0, 0.8249),
        **{
            tag: xyz + s15f16(*p)
            for tag, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
        },
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s12x4s", 132 + 12 * len(tags) + len(body), b"test", 0x02400000,
                       b"mntr", b"RGB ", b"XYZ ", b"acsp")  # fmt: skip
    head += bytes(28) + s15f16(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + body


# Display P3's primaries, adapted to D50, with a plain gamma.
P3 = icc_profile(
    [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)], 2.2
)


def p3_to_srgb(pixel):
    """The conversion by its definition (matrices of CSS Color 4), clipped, in 0-255."""
    to_srgb = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    linear = np.clip(to_srgb @ (np.array(pixel) / 255) ** 2.2, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * encoded


@pytest.mark.parametrize("pixel", [(200, 120, 60), (90, 160, 110), (128, 128, 128), (60, 60, 140)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_wide_gamut_profile_is_converted_to_srgb(pixel, mode):
    image = Image.new("RGB", (2, 2), pixel).convert(mode)
    found = through_a_file(image, icc_profile=P3)[0][0]
    assert np.abs(np.array(found) - p3_to_srgb(pixel)).max() <= 2
    if len(set(pixel)) > 1:
        assert np.abs(np.array(found) - pixel).max() > 3


def test_a_palette_with_a_profile_is_converted():
    image = Image.new("P", (1, 1))
    image.putpalette([200, 120, 60])
    found = through_a_file(image, icc_profile=P3)[0][0]
    assert np.abs(np.array(found) - p3_to_srgb((200, 120, 60))).max() <= 2


def test_srgb_pixels_stay_exactly_as_they_are():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert through_a_file(picture(), icc_profile=profile) == np.asarray(picture()).tolist()


@pytest.mark.parametrize("profile", [b"nonsense", P3[:200]])
def test_a_broken_profile_is_taken_for_absent(profile):
    assert through_a_file(picture(), icc_profile=profile) == np.asarray(picture()).tolist()


def test_a_profile_of_another_colour_space_is_taken_for_absent():
    grey = picture().convert("L")
    assert through_a_file(grey, mode="L", icc_profile=P3) == np.asarray(grey).tolist()


def test_metadata_is_dropped():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = file_of(picture(), "JPEG", exif=exif, icc_profile=P3, comment=b"hello", dpi=(72, 72))
    image = normalise(open_image(data))
    assert not image.info and not image.getexif()
    assert type(image) is Image.Image


# Animations


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    options = dict(save_all=True, append_images=frames[1:], duration=100)
    if format == "WEBP":
        options["lossless"] = True
    data = file_of(frames[0], format, **options)
    assert normalise(open_image(data)).getpixel((2, 2)) == RED
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    assert normalise(image).getpixel((2, 2)) == RED


# Files that cannot be used


def test_an_empty_file_is_refused():
    with pytest.raises(ImageError, match="empty"):
        open_image(b"")


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_files_that_are_not_images_are_refused(data):
    with pytest.raises(ImageError):
        open_image(data)


def test_postscript_is_refused_because_it_runs_another_program():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(ImageError, match="no supported image format"):
        open_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_file_cut_short_is_refused(format):
    rng = np.random.default_rng(0)
    data = file_of(Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)), format)
    assert open_image(data).size == (40, 40)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "it is global, and fills with grey"
    for part in (0.5, 0.9):
        with pytest.raises(ImageError, match=r".+"):
            open_image(data[: int(part * len(data))])


def test_flipped_bits_raise_only_image_errors():
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = file_of(picture(40, 40), format)
        for _ in range(40):
            data = bytearray(whole)
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            try:
                normalise(open_image(bytes(data)))
            except ImageError as error:
                assert "\n" not in str(error)


def bomb(width, height):
    """A PNG of a few hundred bytes that states this size."""

    def chunk(kind, body):
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_size_is_bounded_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="100 x 100 pixels, expected at most 9999"):
        open_image(bomb(100, 100), max_pixels=9999)
    for side in (20_000, 60_000, 2**31 - 1):
        with pytest.raises(ImageError):
            open_image(bomb(side, side))


def test_the_bound_itself_is_allowed():
    assert open_image(file_of(picture()), max_pixels=24).size == (6, 4)


# Metadata, and grey samples of more than 8 bits


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(samples, colour, *chunks):
    """A PNG file of 16-bit samples [height, width, channels]; `colour` is its colour type."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data


def grey_profile(gamma):
    """An ICC profile of grey samples with a power curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, int(gamma * 256)) + bytes(2)
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78)
    name += bytes(-len(name) % 4)
    white = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    tags = [(b"desc", name), (b"wtpt", b"XYZ " + bytes(4) + white), (b"kTRC", curve)]
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, value in tags:
        table += key + struct.pack(">II", at + len(data), len(value))
        data += value
    head = struct.pack(
        ">I4sI4s4s4s", at + len(data), b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ "
    )
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + table + data


def test_sixteen_bits_keep_their_profile():
    profile = grey_profile(1.0)
    levels = np.arange(0, 256, 5, np.uint8)[np.newaxis]
    eight = through_a_file(Image.fromarray(levels), icc_profile=profile)
    sixteen = through_a_file(Image.fromarray(levels * np.uint16(257)), icc_profile=profile)
    assert sixteen == eight and eight[0][13][0] in (138, 139)  # sRGB of 65/255, linear


def test_sixteen_bits_keep_their_transparency():
    grey = np.array([[[0], [1], [65535]]], np.uint16)
    data = png_of(grey, 0, chunk(b"tRNS", struct.pack(">H", 0)))
    assert np.asarray(normalise(open_image(data), "L")).tolist() == [[255, 0, 255]]
    colours = np.array([[[1000, 2000, 3000], [65535, 0, 0]]], np.uint16)
    data = png_of(colours, 2, chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000)))
    assert np.asarray(normalise(open_image(data))).tolist() == [[list(WHITE), list(RED)]]


@pytest.mark.parametrize("photometric, expected", [(1, 0), (0, 255)])
def test_white_may_be_the_smallest_sample(photometric, expected):
    image = Image.fromarray(np.zeros((1, 1), np.uint16))
    assert through_a_file(image, "TIFF", "L", tiffinfo={262: photometric}) == [[expected]]


@pytest.mark.parametrize(
    "samples", [np.float32([[1000]]), np.float32([[-20, 1]]), np.int32([[70000]]), np.int32([[-5]])]
)
def test_samples_outside_the_range_are_refused(samples):
    with pytest.raises(ImageError, match=r"samples from .* to .*, expected 0 to"):
        through_a_file(Image.fromarray(samples), "TIFF")


def test_large_metadata_does_not_matter():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = b"name\0\0" + zlib.compress(bytes(2**27))  # 128 MiB
    plain = np.full((1, 1, 1), 514, np.uint16)
    large = chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile + bytes(2**22)))
    for extra in ([chunk(b"zTXt", text)], [chunk(b"zTXt", text)] * 3 + [large]):
        data = png_of(plain, 0, *extra)
        assert np.asarray(normalise(open_image(data), "L")).tolist() == [[2]]


def test_the_documented_limit_on_pixels_is_the_limit():
    def header(width, height):
        return png_of(np.zeros((1, 1, 1)), 0)[:16] + struct.pack(">II", width, height)

    for size, words in (((2**14, 2**14), "does not decode"), ((2**14, 2**14 + 1), "too large")):
        ihdr = header(*size)[12:] + bytes([8, 0, 0, 0, 0])
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr[4:]) + chunk(b"IDAT", b"cut")
        with pytest.raises(ImageError, match=words):
            open_image(data)


def test_a_file_of_several_pictures_gives_the_first():
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), GREEN)
    pixel = through_a_file(first, "MPO", save_all=True, append_images=[second], quality=100)[0][0]
    assert np.abs(np.subtract(pixel, RED)).max() <= 2
