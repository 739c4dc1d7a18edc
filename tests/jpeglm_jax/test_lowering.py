"""The train step lowered for GPUs on a CPU: which kernels it calls, and how often."""

import pytest

from configs import avc, jpeg
from jpeglm_jax.hardware import chips
from jpeglm_jax.model.config import KEEP_ATTENTION, REMAT_POLICIES
from tests.jpeglm_jax import gpu

FORWARD = {"cudnn": r"@__cudnn\$fmhaSoftmax\(", "triton": r'name = "mha_forward"'}
BACKWARD = {"cudnn": r"@__cudnn\$fmhaSoftmaxBackward\(", "triton": r'name = "mha_backward"'}


def thin(**changes):
    """The paper's step with two thin layers."""
    config = jpeg.get_config("7b")
    config.batch_size, config.seq_len = 8, 512
    config.model.update(layers=2, width=256, heads=2, kv_heads=2, ffn=512)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("kernel", FORWARD)
@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_attention_runs_once_where_a_remat_policy_keeps_it(remat, kernel, devices):
    config = thin(**{"model.remat": remat, "model.attention": kernel})
    text = gpu.lowered(config, devices)
    runs = 1 if remat in KEEP_ATTENTION else 2
    if remat == "minimal":
        runs = 2  # projections alone
    assert gpu.calls(text, FORWARD[kernel]) == runs
    assert gpu.calls(text, BACKWARD[kernel]) == 1


@pytest.mark.parametrize("kind", [gpu.H100, gpu.A100])
@pytest.mark.parametrize(
    ("page", "preset"),
    [(jpeg, "digits"), (jpeg, "cifar10"), (jpeg, "imagenet64"), (avc, "tiny")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_small_presets_lower_for_a_gpu(page, preset, kind):
    config = page.get_config(preset)
    config.model.layers = 2
    assert gpu.lowered(config, kind=kind)


def test_the_default_on_a_hopper_gpu_is_cudnn_and_before_it_triton():
    assert gpu.calls(gpu.lowered(thin()), FORWARD["cudnn"])
    assert gpu.calls(gpu.lowered(thin(), kind=gpu.A100), FORWARD["triton"])


def test_options_of_a_gpus_compiler_are_no_strings_for_bools():
    for kind, chip in chips.CHIPS.items():
        if kind.startswith("NVIDIA"):
            assert chip.options, kind
            assert all(isinstance(value, bool | int) for value in chip.options.values()), kind
