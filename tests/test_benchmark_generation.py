"""The benchmark of sampling: results are written after every job, and a failure stops no other."""

import argparse
import json
from pathlib import Path

from benchmarks import generation


def test_results_are_written_after_every_job_and_failures_are_reported(monkeypatch):
    def run(command):
        *_, greedy = json.loads(command[-1])
        if "benchmarks.generation" not in command:
            return {"failed": "No module named 'torch'"}
        return {"tokens": [1, 2]} if greedy else {"seconds": 2.0, "device": "NVIDIA H200"}

    monkeypatch.setattr(generation, "run", run)
    args = argparse.Namespace(
        length=11, repeats=1, rounds=1, peer_python="python", only="", skip="transformers_growing"
    )
    written = []
    found = generation.compare(
        Path("/folder"), "25m", args, gpu=True, write=lambda x: written.append(json.dumps(x))
    )
    assert found["tokens_per_second"] == {"ours": 64 * 10 // 2}
    assert found["failed"] == {"transformers_static": "No module named 'torch'"}
    assert "ours_over_best_peer" not in found and "greedy_tokens_equal_up_to" not in found
    assert len(written) == 2 and json.loads(written[0])["tokens_per_second"]
