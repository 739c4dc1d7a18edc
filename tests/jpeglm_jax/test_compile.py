"""What compiling ahead of time tells: read from the program, for devices that need not be there."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jpeglm_jax.compile import abstract_batch, compile_step, make_train_step, words
from jpeglm_jax.hardware import chips, topologies
from jpeglm_jax.hardware.hlo import Program, num_bytes
from jpeglm_jax.hardware.topologies import TopologyError
from jpeglm_jax.model.kernels.splash import share_computed
from tests.jpeglm_jax.conftest import tiny

# A loop of 32 whose body holds one fusion, one gather spread over two fusions, one sum.
SCHEDULED = """HloModule step, is_scheduled=true

%fused.1 (p: bf16[4,8]) -> bf16[32,8] {
  ROOT %gather.1 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%fused.2 (p: bf16[4,8]) -> bf16[32,8] {
  ROOT %gather.2 = bf16[32,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %f.1 = bf16[32,8]{1,0} fusion(%g), calls=%fused.1, backend_config={"estimated_cycles":"100"}
  %f.2 = bf16[32,8]{1,0} fusion(%f.1), calls=%fused.2, backend_config={"estimated_cycles":"20"}
  %r = (f32[16]{0}, f32[]) all-reduce(%x, %y), channel_id=8, to_apply=%add
}

%condition (s: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(32)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %once = bf16[4,8]{1,0} fusion(%x), calls=%add, backend_config={"estimated_cycles":"5"}
  %loop = (s32[], bf16[4,8]{1,0}) while(%t), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize("counter", ["s32", "u32"])  # of a scan, of a product cut into windows
def test_loops_count_in_full(counter):
    assert Program(SCHEDULED.replace("s32[]", f"{counter}[]")).cycles() == 5 + 32 * 120


def test_a_collective_that_is_spread_over_fusions_counts_once():
    assert Program(SCHEDULED).collectives() == {
        "all-gather": dict(count=1, runs=32, asynchronous=1, bytes=32 * 512, bytes_beside=32 * 512),
        "all-reduce": dict(count=1, runs=32, asynchronous=0, bytes=32 * 68, bytes_beside=0),
    }


def test_a_loop_of_unknown_length_is_no_guess():
    with pytest.raises(ValueError, match="does not say how often"):
        Program(SCHEDULED.replace("direction=LT", "direction=NE")).cycles()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[12,3]{1,0:T(8,128)}", 144),
        ("(bf16[4]{0}, /*index=1*/u8[3]{0}, pred[])", 12),
        ("s32[]", 4),
        ("f8e4m3fn[10]", 10),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert num_bytes(shape) == size


def test_the_step_is_compiled_for_a_mesh_of_this_machine():
    config = tiny(**{"mesh.fsdp": 4, "mesh.tensor": 2, "model.remat": "full"})
    report = {"topology": "cpu:8"} | compile_step(config, topologies.describe("cpu:8"))
    assert report["mesh"] == {"fsdp": 4, "tensor": 2}
    assert report["need_gib"] == report["argument_gib"] + report["temp_gib"] > 0
    layers = config.model.layers
    assert report["collectives"]["all-gather"]["runs"] >= 14 * layers  # seven weights, twice
    train_step = make_train_step(config, "cpu")
    assert report["parameters"] == sum(
        x.size for x in jax.tree.leaves(train_step.abstract_state().params)
    )
    assert report["fits"] is report["hbm_gib"] is report["estimated_gcycles"] is None
    assert json.loads(json.dumps(report)) == report
    assert "GiB of state and batch" in words(report) and "no estimate" in words(report)


def test_the_batch_that_is_compiled_for_is_the_batch_that_trains():
    shapes = abstract_batch(tiny())
    assert {key: (x.shape, x.dtype.name) for key, x in shapes.items()} == {
        **dict.fromkeys(("tokens", "targets", "segments", "positions"), ((8, 80), "int32")),
        **dict.fromkeys(("weights", "codec_bytes"), ((8, 80), "float32")),
    }


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [
        ("v5p", "expected such as v5p:4x4x4"),
        ("v5p:4x4xq", "expected such as v5p:4x4x4"),
        ("v5p:4x4", "v5p has 3 dimensions"),
        ("v7x:4x4", "no generation known here"),
        ("cpu:9", "has split its CPU into 8"),
    ],
)
def test_a_topology_that_cannot_be_is_refused(topology, sentence):
    with pytest.raises(TopologyError, match=sentence):
        topologies.describe(topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_the_compiler_it_is_said_how_to_get_it():
    with pytest.raises(TopologyError, match=r"pip install 'jax\[tpu\]==\d"):
        topologies.describe("v5e:16x16")


@pytest.mark.parametrize(("block_q", "block_kv"), [(128, 128), (128, 512), (256, 1024)])
def test_blocks_on_the_diagonal_count_in_full(block_q, block_kv):
    length = 2048
    sees = np.tri(length, dtype=bool)
    blocks = sees.reshape(-1, block_q, length // block_kv, block_kv).any(axis=(1, 3))
    expected = blocks.sum() * block_q * block_kv / length**2
    assert share_computed(length, block_q, block_kv) == expected


def test_every_tpu_of_the_table_can_be_estimated():
    for kind, chip in chips.CHIPS.items():
        if kind.startswith("TPU"):
            assert chip.hbm_gib and chip.clock_hz and chip.link_bytes
    assert chips.chip("TPU v5 lite").peak_flops == 197e12
    assert chips.chip("TPU v5p").peak_flops == chips.chip("TPU v5").peak_flops == 459e12
    assert chips.chip("a chip of tomorrow") is None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_pod_is_compiled_for_without_a_tpu(tmp_path):
    """A thin model for 16 chips: the flags, kernels and numbers of the real thing, in a minute."""
    out = tmp_path / "report.json"
    changes = dict(layers=2, width=512, heads=4, kv_heads=4, ffn=1024)
    subprocess.run(
        [sys.executable, "-m", "jpeglm_jax.compile", "--config=configs/jpeg.py:7b"]
        + ["--topology=v5e:4x4", f"--json={out}", "--config.batch_size=16"]
        + ["--config.seq_len=2048", "--vocab_size=320"]
        + [f"--config.model.{key}={value}" for key, value in changes.items()],
        check=True,
    )
    report = json.loads(out.read_text())
    assert (report["devices"], report["device_kind"]) == (16, "TPU v5 lite")
    assert report["attention"] == "splash" and report["fits"]
    assert report["estimated_gcycles"] > 0 and report["estimated_seconds"]["total"] > 0
