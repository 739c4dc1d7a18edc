"""Parts of the step: losses, perceptual features, FLOPs, a collapse, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import representations
from data_pipelines.utils import npz
from jpeglm_jax.tokenizer import flops, losses, perceptual
from jpeglm_jax.tokenizer.evaluation import collapse
from jpeglm_jax.tokenizer.images import seq_len
from jpeglm_jax.tokenizer.settings import check_numbers
from jpeglm_jax.tokenizer.step import make_step, perplexity, tokenizer_config
from tests.jpeglm_jax.tokenizer.runs import tiny


def step_of(config):
    pixels = representations.make(**config.representation)
    return make_step(config, tokenizer_config(config, pixels), "cpu")


def batch_of(pixels, weights=None):
    targets = jnp.asarray(pixels, jnp.int32).reshape(len(pixels), -1)
    targets = jnp.pad(targets, ((0, 0), (0, 1)))
    weights = jnp.ones(len(pixels)) if weights is None else jnp.asarray(weights, jnp.float32)
    return {"targets": targets, "weights": jnp.broadcast_to(weights[:, None], targets.shape)}


def test_losses_by_their_formulas():
    a, b = (jax.random.normal(jax.random.key(seed), (3, 4, 4, 2)) for seed in range(2))
    np.testing.assert_allclose(losses.l1(a, b), np.abs(a - b).reshape(3, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses.l2(a, b), np.square(a - b).reshape(3, -1).mean(1), rtol=1e-5)
    real, fake = jnp.array([[0.5], [2.0]]), jnp.array([[-0.5], [-3.0]])
    shaped = [x.reshape(2, 1, 1, 1) for x in (real, fake)]
    np.testing.assert_allclose(losses.hinge(*shaped), [0.5, 0.0])
    np.testing.assert_allclose(losses.deceive(shaped[1]), [0.5, 3.0])
    # Features that differ in length only are equal; orthogonal ones are 2 apart.
    x, y = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2), jnp.array([0.0, 3.0]).reshape(1, 1, 1, 2)
    same = losses.perceptual(lambda p: [p], x, 5 * x)
    other = losses.perceptual(lambda p: [p], x, y)
    np.testing.assert_allclose([same[0], other[0]], [0, 2], atol=1e-5)
    assert losses.mean(jnp.array([1.0, 5.0, 100.0]), jnp.array([1.0, 1.0, 0.0])) == 3.0


def test_evaluation_counts_codes_and_ignores_padding():
    step = step_of(tiny())
    params = step.exported(step.init(0).params)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    whole = step.evaluate(params, batch_of(images))
    padded = step.evaluate(
        params, batch_of(np.pad(images, ((0, 2), *[(0, 0)] * 3)), [1, 1, 1, 0, 0])
    )
    for name in whole:
        np.testing.assert_allclose(padded[name], whole[name], rtol=1e-4)
    assert whole["code_counts"].sum() == 3 * 16
    shown, made = step.shown(params, batch_of(images))
    np.testing.assert_array_equal(shown, images)
    error = np.square(images.astype(float) - made).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(whole["psnr"], np.log10(255**2 / error).sum() * 10, rtol=1e-4)


def test_perplexity_is_the_number_of_codes_that_are_used_evenly():
    assert perplexity(jnp.array([3.0, 3.0, 0.0, 3.0])) == pytest.approx(3)
    assert perplexity(jnp.array([9.0, 0.0])) == pytest.approx(1)


def test_a_step_that_is_not_finite_changes_nothing():
    step = step_of(tiny())
    state = step.init(0)
    batch = batch_of(np.zeros((2, 8, 8, 1)))
    state.params["encoder"]["stem"]["bias"] += jnp.inf
    after, metrics = step.update(state, batch, adversarial=True)
    assert metrics["finite"] == 0 and not after.finite
    for before, now in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(before, now)


def test_flops_of_single_operations():
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 3), "f4"), jax.ShapeDtypeStruct((3, 3, 3, 5), "f4")

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert flops.count(convolve, x, kernel) == 2 * 4 * 4 * 5 * 3 * 3 * 3
    a, b = jax.ShapeDtypeStruct((6, 7), "f4"), jax.ShapeDtypeStruct((7, 9), "f4")
    assert flops.count(jax.jit(lambda a, b: jnp.sin(a @ b)), a, b) == 2 * 6 * 7 * 9


def test_flops_of_a_tokenizer():
    config = tiny()
    config.loss.perceptual.weight = config.loss.adversarial.weight = 0.0
    plain = step_of(config)
    positions = 16
    encoder = 4 * 9 * 8 + 2 * 9 * 8 * 8 + 8 * 4 + 4 * 16  # stem, a block, head, nearest code
    decoder = 4 * 9 * 8 + 2 * 9 * 8 * 8 + 9 * 8 * 4
    assert flops.encode_flops_per_image(plain) == 2 * positions * encoder
    assert flops.decode_flops_per_image(plain) == 2 * positions * decoder
    assert flops.train_flops_per_image(plain) == 6 * positions * (encoder + decoder)
    config = config.copy_and_resolve_references()
    config.loss.adversarial.weight = 1.0
    first, second, head = 16 * 16 * 1 * 8, 4 * 16 * 8 * 16, 4 * 9 * 16
    more = flops.train_flops_per_image(step_of(config)) - flops.train_flops_per_image(plain)
    assert more == 0.5 * 8 * 2 * (first + second + head)


def squeezenet(names):
    """Random weights of SqueezeNet 1.0 under the names of a release."""
    rng = np.random.default_rng(0)
    sizes = {2: (96, 16), 3: (128, 16), 4: (128, 32), 5: (256, 32), 6: (256, 48)}
    sizes |= {7: (384, 48), 8: (384, 64), 9: (512, 64)}
    kernels = {names("conv1"): (96, 3, 7, 7)}
    for fire, (width, squeezed) in sizes.items():
        kernels[names(f"fire{fire}/squeeze1x1")] = (squeezed, width, 1, 1)
        kernels[names(f"fire{fire}/expand1x1")] = (4 * squeezed, squeezed, 1, 1)
        kernels[names(f"fire{fire}/expand3x3")] = (4 * squeezed, squeezed, 3, 3)
    tensors = {}
    for name, kernel in kernels.items():
        scale = 1 / np.sqrt(np.prod(kernel[1:]))
        tensors[f"{name}.weight"] = (scale * rng.standard_normal(kernel)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(kernel[0], np.float32)
    return tensors


def test_squeezenet_reads_weights_of_its_own_file(tmp_path):
    npz.save(tmp_path / "squeezenet.npz", squeezenet(str))
    features = perceptual.load("squeezenet", str(tmp_path / "squeezenet.npz"))
    shapes = jax.eval_shape(features, jax.ShapeDtypeStruct((2, 32, 32, 1), "f4"))
    assert [x.shape[1:] for x in shapes] == [
        (29, 29, 96), (14, 14, 128), (14, 14, 256), (6, 6, 384), (6, 6, 512)
    ]  # fmt: skip
    missing = squeezenet(str)
    del missing["fire4/expand3x3.bias"]
    npz.save(tmp_path / "missing.npz", missing)
    (tmp_path / "text.safetensors").write_text("no weights")
    for features, weights, message in [
        ("squeezenet", "", "weights is empty"),
        ("squeezenet", tmp_path / "nowhere.npz", "nowhere"),
        ("squeezenet", tmp_path / "missing.npz", "fire4/expand3x3.bias"),
        ("squeezenet", tmp_path / "text.safetensors", "text.safetensors"),
        ("vgg", "", "squeezenet"),
        ("tests:nothing", "", "nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            perceptual.load(features, str(weights))


def test_a_collapsed_codebook_is_reported_with_the_switch_that_helps():
    config = tiny()
    shape = step_of(config).tokenizer.config
    used = {"eval/codes_used": 0.125}
    assert not collapse({"eval/codes_used": 0.9}, shape, config.quantizer)
    assert "2 of 16" in collapse(used, shape, config.quantizer)
    assert "fsq" in collapse(used, shape, config.quantizer)
    config.quantizer.restart_below = 0.0
    assert "restart_below=0.1" in collapse(used, shape, config.quantizer)
    config.quantizer.update(name="fsq", gradient="straight_through")
    fsq = step_of(config).tokenizer.config
    assert "levels" in collapse(used, fsq, config.quantizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer.name": "lfq"}, "quantizer.name"),
        ({"quantizer.gradient": "gumbel"}, "straight_through, rotation"),
        ({"quantizer.name": "fsq"}, "quantizer.gradient"),
        ({"loss.pixels": "l3"}, "l1, l2"),
        ({"tokenizer.dtype": "int8"}, "tokenizer.dtype"),
        ({"tokenizer.patch": 3}, "divide"),
        ({"loss.adversarial.start": 1.5}, "loss.adversarial.start"),
        ({"loss.adversarial.width": 12}, "multiple of 8"),
        ({"quantizer.ema_decay": 1.0}, "quantizer.ema_decay"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config = tiny(**changes)
        check_numbers(config)
        step_of(config)


def test_only_raw_square_pixels_are_trained_on():
    make = representations.make
    assert seq_len(make("pixel", size=8, mode="RGB", clusters=0)) == 193
    for other in (
        make("jpeg", size=8),
        make("pixel", size=8, mode="RGB", clusters=16),
        make("pixel", size=(8, 16), mode="L", clusters=0),
    ):
        with pytest.raises(ValueError, match="pixel|square"):
            seq_len(other)
