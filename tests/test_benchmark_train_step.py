"""The benchmark of the train step: what is wrong is not timed, what is right is, and at once."""

import json
import subprocess
import sys

import pytest

from benchmarks import train_step
from jpeglm_jax.hardware.chips import MEMORY_FRACTION


def test_a_candidate_is_compared_and_then_timed():
    result = train_step.measure("chunked", "full")
    assert result["layers"] == 2 and result["tokens_per_second"] > 0
    assert 0 <= result["difference"] <= train_step.TOLERANCE
    assert result["mfu"] is None, "the peak of a CPU is not in the table"


@pytest.mark.parametrize("fault", ["documents", "second row", "groups"])
def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch, fault):
    attention = train_step.attention

    def leaks(q, k, v, segments, *, implementation):
        if implementation == "chunked":
            if fault == "documents":
                segments = segments * 0 + 1
            elif fault == "second row":
                segments = segments.at[1:].set(1)
            else:
                k, v = k[:, :, ::-1], v[:, :, ::-1]
        return attention(q, k, v, segments, implementation=implementation)

    monkeypatch.setattr(train_step, "attention", leaks)
    result = train_step.measure("chunked", "full")
    assert "seconds" not in result and "differs from the plain form" in result["wrong"]


def test_a_candidate_that_fails_gives_its_message():
    command = ["python", "-c", "raise SystemExit('no such kernel')"]
    assert "no such kernel" in train_step.last_line(command)["failed"]


def test_a_kernel_of_another_platform_is_skipped_with_the_reason():
    assert "on cpu there are" in train_step.measure("cudnn", "full")["skipped"]


def test_layers_are_as_many_as_the_compiler_counts_memory_for():
    one, each = 10.0, 4.0
    for memory, layers in ((9.0, 0), (10.5, 1), (14.7, 2), (1000.0, 32)):
        assert train_step.layers_that_fit(one, one + each, memory / train_step.RESERVE) == layers


def test_the_most_likely_winner_comes_first_and_candidates_can_be_chosen():
    chosen = train_step.candidates("gpu", "", "")
    assert chosen[0] == "cudnn:minimal_with_attention" and chosen[-1] == "peer"
    assert not any(name.startswith("splash") for name in chosen)
    only = train_step.candidates("gpu", "cudnn", "*:full")
    assert only == ["cudnn:minimal_with_attention", "cudnn:save_qkv_attention"]
    assert train_step.candidates("gpu", "cudnn:none", "") == ["cudnn:none"]
    assert "peer" not in train_step.candidates("gpu", "", "peer,tokamax")
    assert train_step.candidates("cpu", "", "") == ["chunked:full", "peer"]


def test_candidates_get_most_of_a_gpus_memory():
    found = train_step.environment_of("gpu", "/cache")
    assert float(found["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == MEMORY_FRACTION


def test_every_result_is_written_as_soon_as_it_is_known(tmp_path, monkeypatch):
    out = tmp_path / "cpu.json"
    written = []

    def last_line(command, environment=None):
        written.append(json.loads(out.read_text())["ours"] if out.exists() else {})
        return {"seconds": 1e-6, "tflops": 2.0 + len(written), "layers": 2}

    monkeypatch.setattr(train_step, "last_line", last_line)
    arguments = ["--only=xla:full,chunked", f"--out={out}", "--minutes=1"]
    monkeypatch.setattr(sys, "argv", ["train_step", *arguments])
    train_step.main()
    assert [len(ours) for ours in written] == [0, 1]
    monkeypatch.setattr(sys, "argv", ["train_step", "--only=peer", f"--out={out}"])
    train_step.main()
    kept = json.loads(out.read_text())
    assert set(kept["ours"]) == {"xla:full", "chunked:full"}, "of the call before"
    assert kept["peer"]["tflops"] > 0 and kept["best_over_peer"] > 0
    monkeypatch.setattr(sys, "argv", ["train_step", f"--out={out}", "--minutes=0", "--skip=peer"])
    train_step.main()
    assert len(written) == 3, "no time, so nothing was started"


BLOCKED = """
import sys
for name in ("grain", "array_record", "tensorflow_datasets", "av"):
    sys.modules[name] = None
import benchmarks.train_step, benchmarks.generation
from jpeglm_jax.convert import from_hf
from jpeglm_jax.generation import engine
from jpeglm_jax.training import checkpoint
from data_pipelines import representations
representations.make("jpeg", size=16)
"""


def test_the_benchmarks_need_no_package_that_reads_data_sets_or_films():
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)
