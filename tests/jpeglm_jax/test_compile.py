"""What compiling ahead of time reports: read from the program, for devices that need not exist."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jpeglm_jax.compilation import estimate, ptxas, search
from jpeglm_jax.compilation.report import abstract_batch, compile_step, make_train_step, text
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
        "all-gather": dict(
            count=1, runs=32, concurrent=1, bytes=32 * 512, bytes_concurrent=32 * 512
        ),
        "all-reduce": dict(count=1, runs=32, concurrent=0, bytes=32 * 68, bytes_concurrent=0),
    }


def test_a_loop_of_unknown_length_is_no_guess():
    with pytest.raises(ValueError, match="does not state how often"):
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
    assert "GiB of state and batch" in text(report) and "no estimate" in text(report)


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
        ("v7x:4x4", "no description of 'v7x' here"),
        ("h100:9", "up to 8 GPUs"),
        ("h100:2x2x2", "up to 8 GPUs"),
        ("cpu:9", "has split its CPU into 8"),
    ],
)
def test_a_topology_that_cannot_be_is_rejected(topology, sentence):
    with pytest.raises(TopologyError, match=sentence):
        topologies.describe(topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_the_compiler_the_message_names_the_package():
    with pytest.raises(TopologyError, match=r"pip install 'jax\[tpu\]==\d"):
        topologies.describe("v5e:16x16")


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="it is here")
def test_without_the_compiler_for_cuda_the_message_names_the_package():
    with pytest.raises(TopologyError, match=r"pip install 'jax\[cuda13\]==\d"):
        topologies.describe("h100:8")


@pytest.mark.parametrize(("block_q", "block_kv"), [(128, 128), (128, 512), (256, 1024)])
def test_blocks_on_the_diagonal_count_in_full(block_q, block_kv):
    length = 2048
    sees = np.tri(length, dtype=bool)
    blocks = sees.reshape(-1, block_q, length // block_kv, block_kv).any(axis=(1, 3))
    expected = blocks.sum() * block_q * block_kv / length**2
    assert share_computed(length, block_q, block_kv) == expected


def test_every_device_of_the_table_can_be_estimated():
    for kind, chip in chips.CHIPS.items():
        assert chip.hbm_gib and chip.link_bytes, kind
        if kind.startswith("TPU"):
            assert chip.clock_hz and chip.usable_gib == chip.hbm_gib
        else:
            assert chip.network_bytes and chip.compute_capability >= 8.0
            assert chip.usable_gib == chip.hbm_gib * chips.MEMORY_FRACTION
    assert chips.chip("TPU v5 lite").peak_flops == 197e12
    assert chips.chip("TPU v5p").peak_flops == chips.chip("TPU v5").peak_flops == 459e12
    assert chips.chip("a chip of tomorrow") is None


def test_cards_of_one_name_are_told_apart():
    assert chips.chip("NVIDIA H100 80GB HBM3").peak_flops == 989e12
    assert chips.chip("NVIDIA H100 PCIe").peak_flops == 756e12
    assert chips.chip("NVIDIA H200").hbm_gib > 140 > chips.chip("NVIDIA H100 NVL").hbm_gib
    assert chips.chip("NVIDIA H200 NVL").peak_flops < chips.chip("NVIDIA H200").peak_flops
    assert chips.chip("NVIDIA H100") is None, "which of them?"
    assert chips.chip("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


def test_what_gpus_are_described_as_is_in_the_table():
    for target in topologies.TARGETS.values():
        known = chips.chip(target.device_kind)
        assert known.hbm_gib == pytest.approx(target.memory_bytes / 2**30, rel=1e-3)
        assert f'name: "{target.device_kind}"' in target.text()


# Of a GPU: a loop of 32 with a gather concurrent with a product, and a scatter with none.
GPU = (
    """HloModule step, is_scheduled=true

%gemm (a: bf16[64,32], b: bf16[32,16]) -> bf16[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%slice (p: bf16[32,64,16]) -> bf16[64,16] {
  %row = bf16[64,16]{1,0} dynamic-slice(%p, %i)
  ROOT %call = bf16[64,16]{1,0} custom-call(%row), custom_call_target="mosaic_gpu_v2", MOSAIC
}

%body (s: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %w = bf16[4,16]{1,0} get-tuple-element(%s), index=1
  %gather-start = (bf16[4,16]{1,0}, bf16[32,16]{1,0}) all-gather-start(%w), channel_id=1
  %product = bf16[64,16]{1,0} fusion(%x, %y), kind=kCustom, calls=%gemm
  %gather-done = bf16[32,16]{1,0} all-gather-done(%gather-start)
  %attend = (bf16[64,16], u8[0]) custom-call(%q, %k), custom_call_target="__cudnn$fmhaSoftmax"
  %scatter-start = ((f32[32,16]{1,0}), f32[4,16]{1,0}) reduce-scatter-start(%g), channel_id=2
  %scale = f32[4,16]{1,0} multiply(%h, %h)
  %scatter-done = f32[4,16]{1,0} reduce-scatter-done(%scatter-start)
}

%condition (s: (s32[], bf16[64,32])) -> pred[] {
  %bound = s32[] constant(32)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: bf16[64,32]) -> bf16[64,32] {
  %l = bf16[64,32]{1,0} parameter(0)
  %once = (f32[64,8]{1,0}, s8[0]{0}) custom-call(%l, %r), custom_call_target="__cublas$gemm", CONFIG
  %triton = (bf16[64,16]) custom-call(%q), custom_call_target="__gpu$xla.gpu.triton", METADATA
  %sliced = bf16[64,16]{1,0} fusion(%all), kind=kCustom, calls=%slice
  %loop = (s32[], bf16[64,32]{1,0}) while(%t), condition=%condition, body=%body
}
""".replace("MOSAIC", 'metadata={op_name="jit(update)/flash_attention_sm90/mpmd_map"}')
    .replace("METADATA", 'metadata={op_name="jit(update)/jit(mha)/mha_forward/pallas_call"}')
    .replace(
        "CONFIG",
        'backend_config={"operation_queue_id":"0","gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
    )
)


def test_products_and_kernels_of_a_gpu_count_in_full():
    program = Program(GPU)
    assert program.product_flops() == 32 * 2 * 64 * 16 * 32 + 2 * 64 * 8 * 32
    found = {"mha_forward": 1, "fmhaSoftmax": 32, "flash_attention_sm90": 1}
    assert program.kernels() == found, "the last inside of a fusion"


def test_a_collective_of_a_gpu_is_concurrent_where_work_is_scheduled_between_its_ends():
    whole = 32 * 16
    assert Program(GPU).collectives() == {
        "all-gather": dict(
            count=1, runs=32, concurrent=1, bytes=32 * 2 * whole, bytes_concurrent=32 * 2 * whole
        ),
        "reduce-scatter": dict(
            count=1, runs=32, concurrent=0, bytes=32 * 4 * whole, bytes_concurrent=0
        ),
    }


def test_registers_and_spills_are_read_from_what_ptxas_prints():
    printed = """ptxas info    : Compiling entry function 'mha_backward' for 'sm_90a'
    56 bytes stack frame, 56 bytes spill stores, 60 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 56 bytes cumulative stack size"""
    expected = {"kernel": "mha_backward", "registers": 255, "spilled_bytes": 56}
    assert ptxas.parse("mha_backward", printed) == expected
    with pytest.raises(ValueError, match="no registers of mha_backward"):
        ptxas.parse("mha_backward", "ptxas fatal: no such file")


def test_attention_of_a_gpu_is_estimated_by_the_kernels_rates():
    model = make_train_step(tiny(**{"model.remat": "full"}), "gpu").model.config
    h100, pcie = (chips.chip(f"NVIDIA H100 {card}") for card in ("80GB HBM3", "PCIe"))
    product = 3 * model.layers * model.heads * 80**2 * model.head_dim
    forwards, backwards = estimate.KERNEL_RATES["cudnn"]
    seconds = estimate.gpu_attention("cudnn", model, 80, 3, h100)
    assert seconds == pytest.approx(product * (4 / forwards + 5 / backwards))
    slower = estimate.gpu_attention("cudnn", model, 80, 3, pcie)
    assert slower / seconds == pytest.approx(989 / 756)
    assert estimate.gpu_attention("xla", model, 80, 3, h100) == 0.0, "counted as products"


class Compiler:
    """Stands in for the compiler: what each policy needs per row, and how long it takes."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.needs = dict(zip(search.POLICIES, (60, 40, 30, 25, 20, 15, 10), strict=True))
        monkeypatch.setattr(search, "compile_step", self)
        monkeypatch.setattr(search, "kernels", lambda *_: ["fast", "slow"])

    def __call__(self, config, devices):
        model, parts = config.model, config.optimizer.grad_accum_steps
        rows = config.batch_size // len(devices) // parts
        self.calls.append((model.attention, rows, model.remat))
        fits = rows * self.needs[model.remat] <= 50
        seconds = 100 / self.needs[model.remat] + (model.attention == "slow") + parts / 10
        return dict(
            fits=fits,
            need_gib=rows * self.needs[model.remat],
            estimated_seconds={"total": seconds} if fits else None,
            attention=model.attention,
            remat=model.remat,
            grad_accum_steps=parts,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            devices=len(devices),
            device_kind="a GPU",
        )


def test_the_search_finds_the_least_estimated_time_that_fits(monkeypatch):
    compiler = Compiler(monkeypatch)
    found = search.search(tiny(batch_size=32), jax.devices())
    assert (found[0]["attention"], found[0]["rows_per_device"]) == ("fast", 1)
    assert found[0]["remat"] == "minimal_with_attention"
    fitting = [report for report in found if report["fits"]]
    totals = [report["estimated_seconds"]["total"] for report in fitting]
    assert totals == sorted(totals) and found[: len(fitting)] == fitting
    # Per kernel: until a policy fits; with more rows, from that policy on; until that is slower.
    policies = search.POLICIES
    expected = [(1, policies[0]), (1, policies[1]), (2, policies[1]), (2, policies[2])]
    expected += [(2, policies[3])]
    assert [call[1:] for call in compiler.calls if call[0] == "fast"] == expected
    assert search.line(found[0]) in {
        "| 1 | 4 | fast | minimal_with_attention | 40.00 | 2.90 | 110 |",
    }
    flags = search.best(found)
    assert "--config.model.attention=fast --config.model.remat=minimal_with_attention" in flags
    assert flags.endswith("grad_accum_steps=4")


def test_a_batch_that_the_devices_do_not_divide_is_rejected_by_the_search():
    with pytest.raises(ValueError, match="batch_size = 12 is not a multiple of the 8 parts"):
        list(search.rows_per_device(tiny(batch_size=12), jax.devices()))


def test_the_search_tries_the_kernels_that_can_take_the_shape():
    config = tiny(**{"model.attention": "auto"})
    assert search.kernels(config, jax.devices()) == ["xla"]
    config.model.attention = "chunked"
    assert search.kernels(config, jax.devices()) == ["chunked"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_pod_is_compiled_for_without_a_tpu(tmp_path):
    """A thin model for 16 chips: the flags, kernels and numbers of the real thing, in a minute."""
    out = tmp_path / "report.json"
    changes = dict(layers=2, width=512, heads=4, kv_heads=4, ffn=1024)
    subprocess.run(
        [sys.executable, "-m", "jpeglm_jax.compile", "--config=configs/jpeg.py:7b"]
        + ["--topology=v5e:4x4", f"--json={out}", "--config.batch_size=16", "--config.seq_len=2048"]
        + [f"--config.model.{key}={value}" for key, value in changes.items()],
        check=True,
    )
    report = json.loads(out.read_text())
    assert (report["devices"], report["device_kind"]) == (16, "TPU v5 lite")
    assert report["attention"] == "splash" and report["fits"]
    assert report["estimated_gcycles"] > 0 and report["estimated_seconds"]["total"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs jax[cuda13]"
)
@pytest.mark.parametrize("attention", ["cudnn", "triton"])
def test_gpus_are_compiled_for_without_a_gpu(tmp_path, attention):
    """The paper's step on eight H100, all of it: half a minute."""
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "jpeglm_jax.compile", "--config=configs/jpeg.py:7b"]
    command += ["--topology=h100:8", "--config.batch_size=8", f"--json={out}"]
    command += ["--config.model.remat=minimal_with_attention"]
    subprocess.run([*command, f"--config.model.attention={attention}"], check=True)
    report = json.loads(out.read_text())
    assert (report["devices"], report["device_kind"]) == (8, "NVIDIA H100 80GB HBM3")
    assert report["fits"] and report["need_gib"] < 51
    assert report["max_documents"] == 16
    forward = report["kernels"]["fmhaSoftmax" if attention == "cudnn" else "mha_forward"]
    assert forward == 32, "once a layer"
    gathers = report["collectives"]["all-gather"]
    assert gathers["concurrent"] >= 10 and gathers["bytes"] > 2 * 2 * report["parameters"] * 0.99
    assert report["product_flops"] > 0 and report["estimated_seconds"]["total"] > 0.5
    if attention == "triton" and ptxas.find():
        kernels = {kernel["kernel"]: kernel for kernel in report["registers"]}
        assert 0 < kernels["mha_forward"]["registers"] <= 255
