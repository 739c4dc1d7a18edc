"""evals.inputs.images: files, archives, records and shards give the same images by number."""

import io
import tarfile

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from data_pipelines import representations
from data_pipelines.prepare import prepare
from evals.inputs.images import FittedImages, open_images


def photo(number, size=(40, 30)):
    """A smooth coloured image, uint8 [height, width, 3]."""
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 3, size[1]))
    waves = [np.sin(x * (1 + number % 3) + c) + np.cos(y + number + c) for c in range(3)]
    return np.clip(128 + 60 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def encoded(number, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(photo(number)).save(buffer, kind)
    return buffer.getvalue()


def pixels(images):
    return [np.asarray(images.decode(number, images.read(number))) for number in range(len(images))]


def check(images, count=4):
    assert len(images) == len({images.key(number) for number in range(count)}) == count
    for number, found in enumerate(pixels(images)):
        np.testing.assert_array_equal(found, photo(number))


def test_files_of_a_folder(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    check(open_images(str(tmp_path)))
    check(open_images(f"folder:{tmp_path}"))
    assert open_images(str(tmp_path)).paths == (str(tmp_path),)


def test_members_of_a_tar(tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(encoded(number))
            tar.addfile(info, io.BytesIO(encoded(number)))
    check(open_images(str(tmp_path / "some.tar")))


def test_records_of_array_record_files(tmp_path):
    for file, numbers in (("a", (0, 1, 2)), ("b", (3,))):
        path = tmp_path / f"{file}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for number in numbers:
            writer.write(encoded(number))
        writer.close()
    check(open_images(f"records:{tmp_path}/*.array_record"))
    check(open_images(str(tmp_path / "a.array_record")), 3)


def test_documents_of_prepared_shards(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / "images" / f"{number}.png").write_bytes(encoded(number))
    options = {"name": "jpeg", "size": 16, "quality": 50}
    out = tmp_path / "shards"
    prepare(
        source=f"folder:{tmp_path / 'images'}", representation=options, out=out, copies=1, workers=1
    )
    images = open_images(f"shards:{out}:train")
    assert len(images) == 12 and images.metadata["decoded_from"]
    assert {found.shape for found in pixels(images)} == {(16, 16, 3)}
    assert sorted(images.key(number) for number in range(12))[:2] == ["0.png", "0.png#1"]
    with pytest.raises(ValueError, match="split 'eval'"):
        open_images(str(out))


def test_fitted_images_are_cropped_and_coded_by_the_representation(tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(1))
    representation = representations.make("jpeg", size=24, quality=10)
    images = open_images(str(tmp_path))
    image = Image.fromarray(photo(1))
    (plain,) = pixels(FittedImages(images, representation, coded=False))
    (coded,) = pixels(FittedImages(images, representation, coded=True))
    np.testing.assert_array_equal(plain, representation.fit(image))
    np.testing.assert_array_equal(coded, representation.decode(representation.encode(image)))
    assert 1 < np.abs(plain.astype(int) - coded).mean() < 20


def test_grey_images_are_converted_to_rgb(tmp_path):
    Image.fromarray(photo(0)[..., 0]).save(tmp_path / "grey.png")
    (found,) = pixels(open_images(str(tmp_path)))
    assert found.shape == (30, 40, 3)
    representation = representations.make("jpeg", size=8, mode="L")
    (coded,) = pixels(FittedImages(open_images(str(tmp_path)), representation, coded=True))
    assert coded.shape == (8, 8, 3)


def test_a_path_without_images_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="there are no images at .*absent"):
        open_images(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="holds no image"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match="absent.array_record"):
        open_images(str(tmp_path / "absent.array_record"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_of_a_sample_batch(tmp_path, save):
    array = np.stack([photo(number) for number in range(4)])
    save(tmp_path / "some.npz", array, np.array([3, 0, 2, 2]))
    images = open_images(str(tmp_path / "some.npz"))
    check(images)
    assert [images.label(number) for number in range(4)] == [3, 0, 2, 2]
    check(open_images(f"npz:{tmp_path / 'some.npz'}"))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 \[2, 4, 4, 3\], expected images: uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"uint8 \[2, 3, 4, 4\]"),
        (np.zeros((2, 4, 4), np.uint8), r"uint8 \[2, 4, 4\]"),
        (np.array([None]), "Python objects"),
    ],
)
def test_arrays_that_are_no_images_are_rejected(tmp_path, array, words):
    np.savez(tmp_path / "some.npz", array)
    with pytest.raises(ValueError, match=words):
        open_images(str(tmp_path / "some.npz"))


def test_files_are_opened_as_a_viewer_or_as_other_tools_do(tmp_path):
    image = Image.fromarray(np.dstack([photo(0), np.full((30, 40), 128, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    viewer, peers = (open_images(str(tmp_path), open_as) for open_as in ("viewer", "peers"))
    assert viewer.metadata["open_as"] == "viewer" and peers.metadata["open_as"] == "peers"
    assert pixels(viewer)[0].shape == (40, 30, 3)
    theirs = np.asarray(Image.open(tmp_path / "turned.png").convert("RGB"))
    np.testing.assert_array_equal(pixels(peers)[0], theirs)
    np.testing.assert_array_equal(theirs, photo(0))
