"""Features depend on neither batch, devices nor interruptions; rejected images are named."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from data_pipelines.representations.vq.representation import VqRepresentation
from data_pipelines.utils.npz import NpzError
from evals.features import extractors, features, inception
from evals.features.base import INDEX, Extractor, FeatureError, FeatureSet, WeightsError
from evals.features.features import extract
from evals.features.weights import Weights
from evals.inputs.images import FittedImages, Images, open_images
from tests.data_pipelines.representations.vq import tokenizers
from tests.evals.plugin import patches
from tests.evals.reference import PARTIAL, golden_module

golden_inputs = golden_module("weights")


def noise(number, size=(20, 24)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for number in range(10):
        (path / f"{number:02d}.png").write_bytes(png(noise(number)))
    return path


def counting(extractor):
    """The extractor, and the list of batches of its calls."""
    seen = []

    def apply(batch):
        seen.append(batch)
        return extractor.apply(batch)

    return dataclasses.replace(extractor, apply=apply), seen


def fid_64():
    tensors = {n: golden_inputs.draw(n, shape) for n, shape in inception.required(["64"]).items()}
    return extractors.fid_inception(Weights(tensors, "0" * 64, "random"), 64)


def test_features_depend_on_neither_batch_size_nor_padding(folder, tmp_path):
    extractor = fid_64()
    assert jax.local_device_count() == 8
    found = [
        extract(open_images(str(folder)), extractor, tmp_path / str(size), batch_size=size).main
        for size in (1, 16)
    ]
    assert found[0].shape == (10, 64) and found[0].std() > 0.1
    np.testing.assert_allclose(found[0], found[1], atol=1e-5, rtol=0)


def test_every_batch_has_the_same_size(folder, tmp_path):
    extractor, seen = counting(patches())
    found = extract(open_images(str(folder)), extractor, tmp_path / "out", batch_size=8)
    assert [len(batch) for batch in seen] == [8, 8]
    expected = np.stack([extractor.prepare(noise(number)) for number in range(10)])
    np.testing.assert_array_equal(found.main, expected.reshape(10, -1))
    assert found.keys == [f"{number:02d}.png" for number in range(10)]


def test_an_interruption_costs_one_part(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 4)
    extractor, seen = counting(patches())

    def stop(batch):
        if len(seen) == 2:
            raise KeyboardInterrupt
        return extractor.apply(batch)

    images, out = open_images(str(folder)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract(images, dataclasses.replace(extractor, apply=stop), out, batch_size=8)
    with pytest.raises(FeatureError, match="no complete set of features"):
        FeatureSet.load(out / extractor.folder_name)
    whole = extract(images, extractor, out, batch_size=8)
    assert len(seen) == 3  # two before, and only the third after
    fresh = extract(images, patches(), tmp_path / "fresh", batch_size=8)
    np.testing.assert_array_equal(whole.main, fresh.main)
    assert whole.metadata == fresh.metadata


def test_a_changed_image_computes_only_its_part_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 4)
    extractor, seen = counting(patches())
    before = extract(open_images(str(folder)), extractor, tmp_path / "out", batch_size=8)
    (folder / "05.png").write_bytes(png(noise(99)))
    after = extract(open_images(str(folder)), extractor, tmp_path / "out", batch_size=8)
    assert len(seen) == 3 + 1
    changed = np.flatnonzero((before.main != after.main).any(1))
    assert changed.tolist() == [5]
    assert before.metadata["inputs"] != after.metadata["inputs"]


def test_a_damaged_part_is_made_again(folder, tmp_path):
    extractor, seen = counting(patches())
    before = extract(open_images(str(folder)), extractor, tmp_path / "out")
    part = next((tmp_path / "out").rglob("part-*.npz"))
    part.write_bytes(part.read_bytes()[:1000])
    after = extract(open_images(str(folder)), extractor, tmp_path / "out")
    assert len(seen) == 2
    np.testing.assert_array_equal(before.main, after.main)


def test_every_extractor_has_a_separate_folder(folder, tmp_path):
    images = open_images(str(folder))
    for version in ("1", "2"):
        extract(images, patches(version), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("features-patches-*"))) == 2


def test_unreadable_files_are_rejected_and_named(folder, tmp_path):
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    found = extract(open_images(str(folder)), patches(), tmp_path / "out")
    assert len(found) == 9
    assert [name for name, _ in found.rejected] == ["03.png", "bad.png", "empty.png"]
    assert "does not decode" in found.rejected[0][1]


def test_documents_that_a_device_decodes_are_decoded_together(folder, tmp_path, monkeypatch):
    (folder / "03.png").write_bytes(b"no image")
    calls = []
    decode_batch = VqRepresentation.decode_batch

    def counted(self, documents):
        calls.append(len(documents))
        return decode_batch(self, documents)

    monkeypatch.setattr(VqRepresentation, "decode_batch", counted)
    images = FittedImages(open_images(str(folder)), tokenizers.representation(), coded=True)
    together = extract(images, patches(), tmp_path / "together")
    assert calls == [9]  # of 10, one of which is no image
    assert [name for name, _ in together.rejected] == ["03.png"]
    images.together = 1
    alone = extract(images, patches(), tmp_path / "alone")
    assert calls == [9] + [1] * 9
    np.testing.assert_array_equal(together.main, alone.main)
    assert together.rejected == alone.rejected


def test_no_readable_image_at_all_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    with pytest.raises(FeatureError, match=r"none of the 1 files .* bad.png: found 8 bytes"):
        extract(open_images(str(tmp_path / "images")), patches(), tmp_path / "out")


def test_images_of_several_sizes_share_batches_and_are_counted(folder, tmp_path):
    (folder / "wide.png").write_bytes(png(noise(0, (10, 70))))
    found = extract(open_images(str(folder)), fid_64(), tmp_path / "out")
    assert found.sizes == {"24 x 20": 10, "70 x 10": 1}
    assert found.main.shape == (11, 64)


def test_nan_features_are_rejected_with_the_name_of_the_image(folder, tmp_path):
    def broken(batch):
        values = batch.reshape(len(batch), -1).copy()
        values[2] = np.nan
        return {"colours": values}

    extractor = dataclasses.replace(patches(), apply=broken)
    with pytest.raises(FeatureError, match=r"feature colours of 1 of 10 images.*'02.png'"):
        extract(open_images(str(folder)), extractor, tmp_path / "out")


def test_equal_pixels_have_equal_digests(folder, tmp_path):
    Image.fromarray(noise(4)).save(folder / "again.bmp")
    found = extract(open_images(str(folder)), patches(), tmp_path / "out")
    digests = dict(zip(found.keys, map(bytes, found.digests), strict=True))
    assert digests["again.bmp"] == digests["04.png"] != digests["05.png"]


def test_processes_share_the_parts(folder, tmp_path, monkeypatch):
    """Each process writes its own parts; the last one finds all of them."""
    monkeypatch.setattr(features, "PART", 4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.sync_global_devices", lambda _: None)
    images, batches = open_images(str(folder)), []
    for process in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        extractor, seen = counting(patches())
        if process:  # the index needs all parts; the barrier is patched out
            with pytest.raises(NpzError, match="part-00000.npz"):
                extract(images, extractor, tmp_path / "out", batch_size=8)
        else:
            found = extract(images, extractor, tmp_path / "out", batch_size=8)
        batches.append(len(seen))
    assert batches == [1, 2] and len(found) == 10


def test_the_fingerprint_depends_on_the_settings():
    one, other = patches("1"), patches("2")
    assert one.fingerprint == patches("1").fingerprint != other.fingerprint


class ArrayImages(Images):
    """A user-defined set of images."""

    def __init__(self):
        super().__init__("arrays", {"kind": "noise"})

    def __len__(self):
        return 3

    def key(self, number):
        return f"image {number}"

    def read(self, number):
        return png(noise(number))


def test_images_that_are_decoded_in_another_way_are_computed_again(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    out = tmp_path / "out"
    found = [
        extract(open_images(str(tmp_path), open_as), patches(), out)
        for open_as in ("viewer", "peers", "viewer")
    ]
    assert [features.main.mean() for features in found] == [1, 0, 1]


def test_a_user_defined_set_of_images_is_extracted(tmp_path):
    found = extract(ArrayImages(), patches(), tmp_path)
    assert found.keys == ["image 0", "image 1", "image 2"]
    index = json.loads(next(tmp_path.rglob(INDEX)).read_text())
    assert index["metadata"]["images"] == {"from": "arrays", "kind": "noise"}


def test_extractors_are_made_by_name(tmp_path):
    assert extractors.make("tests.evals.plugin:patches").name == "patches"
    assert extractors.make("digits").name == "digit_classifier"
    with pytest.raises(ValueError, match="cannot be imported"):
        extractors.make("tests.evals.plugin:absent")
    with pytest.raises(ValueError, match="returned a NoneType.*Extractor"):
        extractors.make("tests.evals.plugin:nothing")
    with pytest.raises(
        ValueError, match="found features 'other', expected inception, dinov2, clip"
    ):
        extractors.make("other")
    with pytest.raises(WeightsError, match="needs --weights=FILE"):
        extractors.make("inception")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--features=digits", "--resize=tf1"], "--resize has no effect with --features=digits"),
        (["--features=tests.evals.plugin:patches", "--weights=a"], "--weights has no effect"),
        (["--features=dinov2", "--weights=absent", "--dims=64"], "--dims has no effect"),
        (["--features=digits"], None),
    ],
)
def test_flags_without_effect_are_refused(given, words):
    values = flags.FlagValues()
    for name, default in (("features", "auto"), ("weights", None), ("resize", None)):
        flags.DEFINE_string(name, default, "", flag_values=values)
    flags.DEFINE_string("dims", "2048", "", flag_values=values)
    values(["command", *given])
    if words is None:
        assert extractors.from_flags(values, None).name == "digit_classifier"
    else:
        with pytest.raises(ValueError, match=words):
            extractors.from_flags(values, None)


@pytest.mark.skipif(not PARTIAL.is_file(), reason=f"no {PARTIAL.name} next to the repository")
def test_partial_weights_name_the_features_they_cover():
    extractor = extractors.make("inception", weights=str(PARTIAL), dims=64)
    assert extractor.settings["weights_known_as"] is None
    assert len(extractor.settings["weights_sha256"]) == 64 and extractor.main == "64"
    with pytest.raises(WeightsError, match=r"missing.* They cover 64, 192, 768, spatial"):
        extractors.make("inception", weights=str(PARTIAL), dims=2048)


def test_digit_features_classify_digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    extractor: Extractor = extractors.make("digits")
    pixels = np.rint(data.images[:200] * 255 / 16).astype(np.uint8)
    batch = np.stack([extractor.prepare(np.stack([image] * 3, -1)) for image in pixels])
    logits = extractor.apply(batch)["logits"]
    assert np.mean(logits.argmax(1) == data.target[:200]) > 0.95
