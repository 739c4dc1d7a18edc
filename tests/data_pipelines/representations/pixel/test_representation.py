"""The pixel representation: round trips, prompts, validity, constraint, and what it refuses."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.representations.base import UNREACHABLE
from data_pipelines.representations.pixel.clusters import CLUSTERS_FILE
from data_pipelines.representations.pixel.representation import PixelRepresentation
from tests.data_pipelines.representations import machines
from tests.data_pipelines.representations.pixel.pictures import (
    CLUSTERED,
    RAW,
    noise,
    pixels_of,
    representation,
    trained,
)


@pytest.fixture(params=RAW + CLUSTERED, ids=machines.names)
def pixels(request):
    return representation(**request.param)


def image_of(representation, seed=3):
    return noise(*representation.fixed_size, representation.mode, seed)


@pytest.mark.parametrize("options", RAW, ids=machines.names)
def test_bytes_lose_nothing(options):
    made = representation(**options)
    image = image_of(made)
    tokens = made.encode(image)
    assert tokens.tolist() == np.asarray(image).ravel().tolist(), "raster order, interleaved"
    assert tokens.dtype == made.token_dtype and len(tokens) == made.num_dimensions
    decoded = made.decode(tokens)
    assert decoded.mode == made.mode and decoded.tobytes() == image.tobytes()


@pytest.mark.parametrize("options", CLUSTERED, ids=machines.names)
def test_clusters_give_each_pixel_the_nearest_colour(options):
    made = representation(**options)
    image = image_of(made)
    tokens = made.encode(image)
    width, height = made.fixed_size
    assert len(tokens) == width * height and made.num_dimensions == 0
    colours = made.centres.colours.astype(int)
    distance = np.square(pixels_of(image).astype(int)[:, None] - colours).sum(-1)
    np.testing.assert_array_equal(tokens, distance.argmin(1))
    decoded = made.decode(tokens)
    np.testing.assert_array_equal(pixels_of(decoded), colours[tokens])
    np.testing.assert_array_equal(made.encode(decoded), tokens)


def test_images_of_any_size_and_mode_are_fitted(pixels):
    large = noise(50, 41, seed=4).convert("RGBA")
    fitted = pixels.fit(large)
    assert (fitted.size, fitted.mode) == (pixels.fixed_size, pixels.mode)
    jpeg = representations.make("jpeg", size=pixels.size, mode=pixels.mode)
    assert fitted.tobytes() == jpeg.fit(large).tobytes(), "all representations see equal pixels"
    np.testing.assert_array_equal(pixels.encode(large), pixels.encode(fitted))
    with pytest.raises(ValueError, match="0 x 4"):
        pixels.encode(Image.new("RGB", (0, 4)))


def test_batches_are_decoded_as_one_document_at_a_time(pixels):
    good = pixels.encode(image_of(pixels)).astype(np.int64)
    bad = good.copy()
    bad[7] = pixels.eos
    documents = [good, good[:5], bad, np.concatenate([good, good]), good[:0], good + 10_000]
    batch = pixels.decode_batch(documents)
    for tokens, image in zip(documents[:4], batch, strict=False):
        assert image.tobytes() == pixels.decode(tokens).tobytes()
    assert batch[4:] == [None, None] and pixels.decode_batch([]) == []
    assert batch[3].tobytes() == batch[0].tobytes(), "surplus tokens are ignored"
    whole = 7 // (1 if pixels.clusters else pixels.channels)
    shown, original = pixels_of(batch[2]), pixels_of(batch[0])
    np.testing.assert_array_equal(shown[:whole], original[:whole])
    assert (shown[whole + 1 :] == 128).all(), "what is missing is grey"
    for tokens in documents[4:]:
        with pytest.raises(ValueError, match=r"found 0 tokens|at position 0 stands for no colour"):
            pixels.decode(tokens)


def test_a_file_is_a_png_of_the_same_pixels(pixels):
    tokens = pixels.encode(image_of(pixels))
    file = pixels.to_bytes(tokens)
    assert Image.open(io.BytesIO(file)).tobytes() == pixels.decode(tokens).tobytes()
    np.testing.assert_array_equal(pixels.from_bytes(file), tokens)
    with pytest.raises(ValueError, match="tokens, expected"):
        pixels.to_bytes(tokens[:-1])
    for image, format in [(noise(9, 9, pixels.mode), "PNG"), (image_of(pixels), "JPEG")]:
        other = io.BytesIO()
        image.save(other, format)
        with pytest.raises(ValueError, match=f"found a {format} file.*expected PNG"):
            pixels.from_bytes(other.getvalue())
    if pixels.clusters:
        other = io.BytesIO()
        image_of(pixels).save(other, "PNG")
        with pytest.raises(ValueError, match="a colour that is none"):
            pixels.from_bytes(other.getvalue())


def test_prompts_are_whole_rows(pixels):
    tokens = pixels.encode(image_of(pixels))
    _, height = pixels.fixed_size
    for ratio, rows in [(0, 0), (1 / height - 1e-9, 0), (0.5, height // 2), (1, height)]:
        prompt = pixels.prompt(tokens, ratio)
        np.testing.assert_array_equal(prompt, tokens[: len(tokens) * rows // height])
    shown = np.asarray(pixels.decode_prefix(pixels.prompt(tokens, 0.5)))
    whole = np.asarray(pixels.decode(tokens))
    np.testing.assert_array_equal(shown[: height // 2], whole[: height // 2])
    assert (shown[height // 2 :] == 128).all()
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="prefix ratio"):
            pixels.prompt(tokens, ratio)
    with pytest.raises(ValueError, match="at position 2 stands for no colour"):
        pixels.prompt(np.where(np.arange(len(tokens)) == 2, pixels.eos, tokens), 0.5)


def test_validity_is_the_exact_number_of_tokens_in_range(pixels):
    tokens = pixels.encode(image_of(pixels)).astype(np.int64)
    width, height = pixels.fixed_size
    per_pixel = 1 if pixels.clusters else pixels.channels
    assert pixels.validate(tokens) == representations.Validity(True, width * height, width * height)
    cases = [
        (tokens[:-1], width * height - 1, f"{len(tokens) - 1} tokens, expected {len(tokens)}"),
        (np.append(tokens, 0), width * height, f"found {len(tokens) + 1} tokens"),
        (tokens[:0], 0, "found 0 tokens"),
        (tokens.astype(float), 0, "found float64"),
        (tokens.reshape(2, -1), 0, "expected tokens"),
    ]
    for wrong in (-1, pixels.num_codes, pixels.eos, pixels.vocab_size, 2**40):
        damaged = tokens.copy()
        damaged[7] = wrong
        named = f"token {wrong} at position 7 stands for no colour; expected 0 to"
        cases.append((damaged, 7 // per_pixel, named))
    found = pixels.validate_batch([tokens for tokens, _, _ in cases])
    for validity, (_, units, named) in zip(found, cases, strict=True):
        assert not validity.valid and named in validity.error
        assert (validity.units, validity.expected) == (units, width * height)


def test_the_machine_allows_exactly_the_valid_documents(pixels):
    rng = np.random.default_rng(0)
    tokens = pixels.encode(image_of(pixels)).astype(np.int32)
    documents = [tokens]
    for _ in range(40):
        damaged = np.resize(tokens, len(tokens) + rng.integers(-1, 2))
        damaged[rng.integers(len(damaged))] = rng.integers(pixels.vocab_size)
        documents.append(damaged)
    machine = pixels.token_machine()
    for document in documents:
        state = machines.states(machine, 1)
        for position, token in enumerate(document):
            allowed = machine.min_tokens_after(machines.rows_of(state))[0] < UNREACHABLE
            within = position < pixels.length and machine.min_tokens_to_end(state)[0] < UNREACHABLE
            expected = np.arange(pixels.vocab_size) < (pixels.num_codes if within else 0)
            np.testing.assert_array_equal(allowed, expected)
            state = machine.step(state, token[None])
        at_end = machine.min_tokens_to_end(state)[0] == 0
        assert at_end == pixels.validate(document).valid
    assert pixels.token_machine(pixels.fixed_size) is not None
    with pytest.raises(ValueError, match=r"found size \(99, 9\)"):
        pixels.token_machine((99, 9))


def test_it_is_a_value_with_an_artefact(pixels, tmp_path):
    pixels.save(tmp_path)
    loaded = representations.load(tmp_path)
    assert loaded == pixels and hash(loaded) == hash(pixels)
    assert loaded.fingerprint == pixels.fingerprint
    assert pickle.loads(pickle.dumps(pixels)) == pixels
    options = pixels.to_options(tmp_path)
    assert representations.make(num_labels=pixels.num_labels, **options) == pixels
    assert (tmp_path / CLUSTERS_FILE).exists() == bool(pixels.clusters)
    if pixels.clusters:
        (tmp_path / CLUSTERS_FILE).write_bytes(trained(pixels.channels, pixels.clusters, 5).file)
        with pytest.raises(ValueError, match="SHA-256"):
            representations.load(tmp_path)
        (tmp_path / CLUSTERS_FILE).unlink()
        with pytest.raises(ValueError, match=CLUSTERS_FILE):
            representations.load(tmp_path)


def test_imagegpts_clusters_have_their_token_ids():
    made = representations.make("pixel", num_labels=10)
    assert (made.num_codes, made.bos, made.eos, made.vocab_size) == (512, 512, 513, 524)
    assert (made.length, made.needs_training, made.prepared_options) == (
        1024,
        True,
        ("num_labels", "centres"),
    )
    assert made == PixelRepresentation(size=(32, 32), num_labels=10)
    assert PixelRepresentation(size=[20, 30]).fixed_size == (20, 30)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(size=0), "size 0"),
        (dict(size=(16, 0)), r"size \(16, 0\)"),
        (dict(size=(1, 2, 3)), r"size \(1, 2, 3\)"),
        (dict(size=70_000), "size 70000"),
        (dict(size=None), "size None"),
        (dict(size=True), "size True"),
        (dict(mode="CMYK"), "mode 'CMYK'"),
        (dict(clusters=1), "clusters=1"),
        (dict(clusters=-1), "clusters=-1"),
        (dict(clusters=2.5), "clusters=2.5"),
        (dict(clusters=257, mode="L"), 'clusters=257.*256 for mode "L"'),
        (dict(centres="/nowhere/clusters.npy"), "which is no file"),
        (dict(quality=50), "no option quality"),
    ],
    ids=str,
)
def test_unusable_options_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        representations.make("pixel", **options)


def test_clusters_of_another_mode_or_number_are_refused(tmp_path):
    path = tmp_path / CLUSTERS_FILE
    path.write_bytes(trained(1, 16).file)
    for options, named in [
        (dict(clusters=16), 'trained for mode "L", expected "RGB"'),
        (dict(clusters=32, mode="L"), "found 16 colour clusters, expected clusters=32"),
        (dict(clusters=0, mode="L"), "clusters=0 has none"),
    ]:
        with pytest.raises(ValueError, match=named):
            representations.make("pixel", centres=str(path), **options)
    assert representations.make("pixel", centres=str(path), clusters=16, mode="L").centres
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{CLUSTERS_FILE}: the colour clusters cannot be read"):
        representations.make("pixel", centres=str(path), clusters=16, mode="L")


def test_clusters_that_are_not_trained_encode_nothing():
    made = representations.make("pixel", size=4)
    for use in (lambda: made.encode(noise(4, 4)), lambda: made.decode(np.arange(16))):
        with pytest.raises(ValueError, match="clusters are not trained; prepare"):
            use()
    with pytest.raises(ValueError, match="set train_tokenizer to 0"):
        made.trained([made.training_sample(noise(30, 30))], vocab_size=320)
    with pytest.raises(ValueError, match="no colour clusters to train"):
        dataclasses.replace(made, clusters=0).trained([])
