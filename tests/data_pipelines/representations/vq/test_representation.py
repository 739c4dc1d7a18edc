"""The representation with a tokenizer of random weights: what it stores, encodes and refuses."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.representations.base import UNREACHABLE
from data_pipelines.representations.vq import weights
from data_pipelines.representations.vq.representation import VqRepresentation
from jpeglm_jax.generation.constraint import make_constraint
from tests.data_pipelines.representations.vq.tokenizers import file, representation, shape


@pytest.fixture(scope="module")
def vq():
    return representation()


def picture(seed=0, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "config", [shape(), shape(mode="RGB"), shape(quantizer="fsq", levels=(4, 5), code_dim=0)]
)
def test_an_image_is_a_code_for_each_position(config):
    made = representation(config)
    tokens = made.encode(picture(size=(20, 12)))
    assert tokens.shape == (16,) and tokens.dtype == made.token_dtype
    assert tokens.max() < made.num_codes == config.num_codes
    image = made.decode(tokens)
    assert (image.mode, image.size) == (config.mode, (8, 8))
    assert made.validate(tokens).valid


def test_codes_do_not_depend_on_the_batch(vq):
    pictures = [picture(seed) for seed in range(21)]
    batch = vq.encode_batch(pictures)
    for each, tokens in zip(pictures, batch, strict=True):
        np.testing.assert_array_equal(vq.encode(each), tokens)
    decoded = vq.decode_batch(batch)
    for image, tokens in zip(decoded, batch, strict=True):
        np.testing.assert_array_equal(image, vq.decode(tokens))
    assert vq.encode_batch([]) == vq.decode_batch([]) == []


def test_it_is_a_value_with_its_weights_as_an_artefact(vq, tmp_path):
    vq.save(tmp_path)
    loaded = representations.load(tmp_path)
    assert loaded == vq == pickle.loads(pickle.dumps(vq))
    stored = (tmp_path / weights.TOKENIZER_FILE).read_bytes()
    assert vq.to_config()["weights"]["sha256"] == hashlib.sha256(stored).hexdigest()
    other = representation(seed=1)
    assert other.fingerprint != vq.fingerprint
    (tmp_path / weights.TOKENIZER_FILE).write_bytes(other.weights)
    with pytest.raises(ValueError, match="SHA-256"):
        representations.load(tmp_path)
    (tmp_path / weights.TOKENIZER_FILE).unlink()
    with pytest.raises(ValueError, match=weights.TOKENIZER_FILE):
        representations.load(tmp_path)


def test_the_file_is_the_same_on_every_machine():
    assert file() == file()
    config, tensors, run = weights.unpack(file())
    assert config == shape() and run == {"seed": 0}
    assert weights.pack(config, dict(reversed(tensors.items())), run) == file()


def test_damaged_documents(vq):
    tokens = vq.encode(picture()).astype(int)
    for damaged, units in [
        (tokens[:-1], 15),
        ([*tokens, 0], 16),
        ([*tokens[:5], vq.num_codes, *tokens[6:]], 5),
        ([*tokens[:5], -1, *tokens[6:]], 5),
        ([], 0),
        ([[1.5]], 0),
    ]:
        validity = vq.validate(np.asarray(damaged))
        assert not validity.valid and validity.error and validity.units == units
        if units:
            assert vq.decode(np.asarray(damaged)).size == (8, 8)
        else:
            with pytest.raises(ValueError):
                vq.decode(np.asarray(damaged))
    assert vq.decode_batch([tokens, np.array([99])])[1] is None
    with pytest.raises(ValueError, match="position 5"):
        vq.prompt(np.array([*tokens[:5], 99]), 0.5)


def test_prompts_are_rows_of_the_grid(vq):
    tokens = vq.encode(picture())
    assert [len(vq.prompt(tokens, ratio)) for ratio in (0, 0.24, 0.25, 0.6, 1)] == [0, 0, 4, 8, 16]
    prefix = np.asarray(vq.decode_prefix(vq.prompt(tokens, 0.5)))
    assert (prefix[4:] == 128).all() and not (prefix[:4] == 128).all()
    with pytest.raises(ValueError, match="ratio"):
        vq.prompt(tokens, 1.5)


def test_the_machine_accepts_exactly_the_valid_documents(vq):
    machine = vq.token_machine()
    rng = np.random.default_rng(0)
    for length in (0, 15, 16, 17):
        tokens = rng.integers(0, vq.num_codes, length)
        state = machine.start()
        for token in tokens:
            state = machine.step(state, np.int32(token))
        assert (machine.min_tokens_to_end(state) == 0) == vq.validate(tokens).valid
    state = machine.step(machine.start(), np.int32(vq.eos))
    assert machine.min_tokens_to_end(state) >= UNREACHABLE
    assert make_constraint(vq)
    with pytest.raises(ValueError, match="size"):
        vq.token_machine((16, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, "8 x 8"),
        ({"mode": "RGB"}, "mode L"),
        ({"weights": ""}, "train_tokenizer"),
        ({"weights": "nowhere"}, "nowhere"),
        ({"weights": "DAMAGED"}, "damaged"),
        ({"quality": 3}, "quality"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    (tmp_path / weights.TOKENIZER_FILE).write_bytes(file())
    (tmp_path / "damaged").write_bytes(file()[:-9])
    given = {"size": 8, "mode": "L", "weights": str(tmp_path), **options}
    if given["weights"] == "DAMAGED":
        given["weights"] = str(tmp_path / "damaged")
    with pytest.raises(ValueError, match=message):
        representations.make("vq", **given)


def test_options_without_weights_can_be_compared_but_encode_nothing():
    made = representations.make("vq", size=8, mode="L")
    assert made.to_config()["weights"] is None
    with pytest.raises(ValueError, match="train_tokenizer"):
        made.encode(picture())


def test_options_name_a_run_or_its_file(tmp_path):
    (tmp_path / weights.TOKENIZER_FILE).write_bytes(file())
    for where in (tmp_path, tmp_path / weights.TOKENIZER_FILE):
        made = representations.make("vq", size=8, mode="L", weights=str(where), num_labels=3)
        assert made == representation(num_labels=3)
    assert representations.make(**made.to_options(tmp_path), num_labels=3) == made


def test_a_tokenizer_of_impossible_shape_is_refused():
    for changes in ({"patch": 3}, {"widths": ()}, {"codes": 0}, {"quantizer": "lfq"}):
        with pytest.raises(ValueError):
            shape(**changes)


def test_jax_is_imported_only_to_encode(tmp_path):
    representation().save(tmp_path)
    code = (
        "import sys; from data_pipelines import representations; "
        f"made = representations.load({str(tmp_path)!r}); made.validate(range(3)); "
        "made.vocab_size; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert VqRepresentation.on_device
