"""Generation jobs and the command: from the folder of a run to files."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import jpeglm_jax
from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.shards.reader import Shards
from data_pipelines.sources import open_source
from data_pipelines.utils.files import WriteError
from evals import digits
from jpeglm_jax.generation import job, options, prompts
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.manifest import JobError
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.train import train
from jpeglm_jax.training import checkpoint
from tests.jpeglm_jax.conftest import tiny

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def workdir(digit_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(3, **{"data.shards": digit_shards, "optimizer.ema": 0.5, "checkpoint.every": 2})
    train(config, folder)
    return folder


def generate(workdir, out, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "-m", "jpeglm_jax.generate"),
            *(f"--workdir={workdir}", f"--out={out}", *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_requested_document_has_a_line_in_the_manifest(workdir, tmp_path):
    result = generate(workdir, tmp_path, "--num=12", "--batch_size=5")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(12))
    assert [line["label"] for line in lines] == [*range(10), 0, 1]
    for line in lines:
        assert line["valid"] == (line["error"] == "")
        if line["file"]:
            assert (tmp_path / line["file"]).read_bytes().startswith(b"\xff\xd8")
    assert Image.open(tmp_path / "grid.png").mode == "RGB"
    counts = digits.recognition(tmp_path)
    assert counts["requested"] == 12
    assert counts["classifier_accuracy"] > 0.97


def test_samples_end_at_the_longest_document_of_the_run(workdir, digit_shards):
    """Rows of training hold several documents; a cache as long as a row would cost time."""
    model = checkpoint.load(workdir)
    lengths = [Shards(digit_shards, split).lengths.max() for split in ("train", "eval")]
    longest = max(lengths) + 2  # start and end token
    assert model.longest_document == longest < model.config.seq_len
    start, prompt = np.array([0]), np.array([0, 1])
    assert model.sampling_len([start, start]) == longest
    assert model.sampling_len([start, prompt]) == model.config.seq_len
    assert model.sampling_len([start], other_size=True) == model.config.seq_len
    sampled = jpeglm_jax.load(workdir).sample(20, seed=1)
    assert max(map(len, sampled.tokens)) == longest - 1, "an untrained model does not end in time"


def test_real_digits_are_recognised(digit_shards, tmp_path):
    documents = Shards(digit_shards, "eval")
    documents.representation.save(tmp_path)
    lines = []
    for number, tokens in enumerate(documents.read(range(60))):
        (tmp_path / f"{number}.jpg").write_bytes(documents.representation.to_bytes(tokens))
        line = {"file": f"{number}.jpg", "label": int(documents.labels[number])}
        lines.append(json.dumps(line | {"valid": documents.representation.validate(tokens).valid}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    counts = digits.recognition(tmp_path)
    assert counts["strictly_valid"] == 1.0
    assert counts["recognised"] > 0.95


WRONG_FLAGS = {
    "--label=10": "label is 10; this model knows 0 to 9",
    "--step=7": "there is no checkpoint of step 7",
    "--num=0": "num is 0",
    "--top_p=2": "top_p is 2.0",
    "--temperature=inf": "temperature is inf",
    "--guidance=nan": "guidance is nan",
    "--batch_size=0": "batch_size is 0",
    "--num_tasks=0": "num_tasks is 0",
    "--seed=4294967296": "seed is 4294967296",
    "--seed=-1": "seed is -1",
    "--prompts=a --prefix_ratio=1.5": "prefix_ratio is 1.5",
    "--prompts=a --max_prompts=-1": "max_prompts is -1",
    "--constrain --size=0x16": "size is '0x16'",
    "--size=16x16": "--size has no effect without --constrain",
    "--prefix_ratio=0.5 --max_prompts=3": "--prefix_ratio and --max_prompts have no effect",
    "--prompts=a --prefix_ratio=0.5 --prefix_frames=1": "--prefix_ratio has no effect",
    "--temperature=0 --top_k=5": "--top_k has no effect",
    "--task=2 --num_tasks=2": "task is 2; expected 0 to 1",
    "--prompts=nowhere": "nowhere",
    "--prompts=tests/golden/convert": "no image",
}
# Every command line runs in a fork of a process that has imported the program.
EACH = """
import json, os, runpy, sys
import jpeglm_jax.generate

for output, *arguments in json.loads(sys.argv[1]):
    process = os.fork()
    if not process:
        with open(output, "w") as file:
            os.dup2(file.fileno(), 2)
        sys.argv = ["generate", *arguments]
        runpy.run_module("jpeglm_jax.generate", run_name="__main__")
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def test_a_wrong_flag_is_refused_in_one_sentence(workdir, tmp_path):
    runs = [
        [f"{tmp_path}/{n}", f"--workdir={workdir}", f"--out={tmp_path}/out", *arguments.split()]
        for n, arguments in enumerate(WRONG_FLAGS)
    ]
    command = [sys.executable, "-c", EACH, json.dumps(runs)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1"] * len(WRONG_FLAGS)
    for n, message in enumerate(WRONG_FLAGS.values()):
        errors = (tmp_path / str(n)).read_text()
        assert message in errors and "Traceback" not in errors


@pytest.fixture(scope="module")
def model(workdir):
    return checkpoint.load(workdir)


@pytest.fixture(autouse=True)
def shared_engine(monkeypatch):
    """Jobs with the same settings share a compiled engine."""
    monkeypatch.setattr(job, "Engine", engine)


ENGINES = {}


def engine(spec, mesh, sampling_params, *, constraint, **settings):
    key = spec, mesh, sampling_params, constraint is None, *sorted(settings.items())
    if key not in ENGINES:
        ENGINES[key] = Engine(spec, mesh, sampling_params, constraint=constraint, **settings)
    return ENGINES[key]


def sample(model, out, num=7, **more):
    """Constrained: after three steps hardly any other document is valid."""
    labels = prompts.cycle_labels(model.representation, num)
    requests = prompts.label_requests(model.representation, labels)
    constraint = make_constraint(model.representation)
    more = {"batch_size": 4, "constraint": constraint} | more
    return job.generate(model, out, requests, SamplingParams(), **more)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_stopped_job_resumes_and_has_the_same_result(model, tmp_path, monkeypatch):
    assert sample(model, tmp_path / "whole").requested == 7
    whole = contents(tmp_path / "whole")
    written = []
    original = job.write_document

    def stop_after_three(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(1)
        return original(*arguments)

    monkeypatch.setattr(job, "write_document", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        sample(model, tmp_path / "stopped")
    part = tmp_path / "stopped" / "manifest-00000-of-00001.jsonl"
    assert len(part.read_text().splitlines()) == 3
    assert not (tmp_path / "stopped" / "manifest.jsonl").exists()
    with open(part, "a") as file:
        file.write('{"number": 4, "fi')  # a line that the stop cut short
    monkeypatch.setattr(job, "write_document", original)
    sample(model, tmp_path / "stopped")
    stopped = contents(tmp_path / "stopped")
    lines = [json.loads(line) for line in stopped.pop("manifest.jsonl").splitlines()]
    expected = [json.loads(line) for line in whole.pop("manifest.jsonl").splitlines()]
    for line, other in zip(lines, expected, strict=True):
        assert line.pop("log_likelihood") == pytest.approx(other.pop("log_likelihood"), rel=1e-4)
        assert line == other
    assert stopped == whole


@pytest.mark.slow
def test_ctrl_c_ends_in_one_sentence_and_keeps_finished_documents(workdir, tmp_path):
    arguments = [f"--workdir={workdir}", f"--out={tmp_path}", "--num=100000"]
    command = [sys.executable, "-m", "jpeglm_jax.generate", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A background process may ignore SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / "manifest-00000-of-00001.jsonl"
    while not (part.exists() and part.read_text().count("\n") > 10):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert str(tmp_path) in errors and "resumes" in errors
    assert "Traceback" not in errors
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    for line in lines:
        assert not line["file"] or (tmp_path / line["file"]).is_file()


def test_tasks_share_the_documents_and_the_last_one_joins_the_manifests(model, tmp_path):
    sample(model, tmp_path / "one")
    assert sample(model, tmp_path / "two", task=1, num_tasks=2) is None
    assert sample(model, tmp_path / "two", task=0, num_tasks=2).requested == 7
    assert not list((tmp_path / "two").glob("manifest-*"))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {k: v for k, v in one.items() if k.endswith("jpg")} == {
        k: v for k, v in two.items() if k.endswith("jpg")
    }


def test_a_finished_job_samples_nothing_and_another_job_is_refused(model, tmp_path, monkeypatch):
    sample(model, tmp_path)
    monkeypatch.setattr(job, "Engine", None)
    assert sample(model, tmp_path).requested == 7
    with pytest.raises(JobError, match="seed is 5 .* 0"):
        sample(model, tmp_path, seed=5)


def test_a_full_disk_is_reported_and_finished_documents_are_kept(model, tmp_path, monkeypatch):
    original = job.write_atomically

    def full(path, data):
        if path.name == "000002.jpg":
            raise WriteError(f"cannot write {path}: No space left on device")
        original(path, data)

    monkeypatch.setattr(job, "write_atomically", full)
    with pytest.raises(WriteError, match="No space left"):
        sample(model, tmp_path)
    part = (tmp_path / "manifest-00000-of-00001.jsonl").read_text().splitlines()
    assert len(part) < 7
    assert all((tmp_path / json.loads(line)["file"]).exists() for line in part)
    monkeypatch.setattr(job, "write_atomically", original)
    assert sample(model, tmp_path).requested == 7


def test_prompts_are_kept_byte_for_byte_and_shown_next_to_the_originals(workdir, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(noise).save(photos / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    arguments = [f"--prompts={photos}", "--prefix_ratio=0.5", "--num=2", "--label=3"]
    result = generate(workdir, tmp_path / "out", *arguments)
    assert result.returncode == 0, result.stderr
    assert "rejected: broken.jpg" in result.stdout
    representation = checkpoint.load(workdir).representation
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for line in map(json.loads, lines):
        original = representation.encode(Image.open(photos / line["source"]))
        prefix = representation.prompt(original, 0.5)
        assert line["prompt_tokens"] == len(prefix) > 0 and line["label"] == 3
        if line["file"]:
            tokens = representation.from_bytes((tmp_path / "out" / line["file"]).read_bytes())
            np.testing.assert_array_equal(tokens[: len(prefix)], prefix)
    pictures = sorted((tmp_path / "out" / "side_by_side").iterdir())
    assert [Image.open(picture).size for picture in pictures] == [(4 * 49 - 1, 48)] * 3


def test_a_medium_whose_prompt_fills_the_sequence_length_is_rejected(model, tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    representation = model.representation
    media = list(prompts.encode_source(representation, open_source(f"folder:{tmp_path}")))
    with pytest.raises(ValueError, match=r"a\.png .* \d+ of 5 positions"):
        prompts.completion_requests(representation, media, 1.0, seq_len=5)
    with pytest.raises(ValueError, match=r"prefix_ratio is 1\.5"):
        prompts.completion_requests(representation, media, 1.5, seq_len=80)


def test_documents_of_an_eval_split_can_be_completed(model, digit_shards, tmp_path):
    shards = Shards(digit_shards, "eval")
    media = prompts.read_shards(shards)
    found = prompts.completion_requests(
        model.representation, media, 0.5, num=2, max_media=3, seq_len=80
    )
    assert len(found.requests) == 6 and len(found.originals) == 3
    for key, tokens in found.originals.items():
        number = next(n for n in range(len(shards)) if shards.key(n) == key)
        np.testing.assert_array_equal(tokens, shards.read([number])[0])


def test_a_medium_whose_prompt_no_valid_document_in_time_begins_with_is_rejected(
    model, digit_shards
):
    media = prompts.read_shards(Shards(digit_shards, "eval"))
    found = prompts.completion_requests(
        model.representation, media, 0.5, num=2, max_media=20, seq_len=80
    )
    constraint = make_constraint(model.representation)
    lengths = [len(request.prompt) for request in found.requests]
    state = constraint.start([request.prompt for request in found.requests])
    seq_len = int(np.median(lengths + constraint.min_tokens_to_end(state)))
    kept = prompts.reject_unfinishable(found, constraint, seq_len)
    assert 0 < len(kept.rejected) < 20 and len(kept.requests) == 2 * len(kept.originals)
    assert len(kept.originals) + len(kept.rejected) == 20
    assert f"of {seq_len} positions" in kept.rejected[0][1]
    with pytest.raises(ValueError, match="of 9 positions"):
        prompts.reject_unfinishable(found, constraint, 9)


def test_samples_of_a_run_take_the_labels_in_turn_or_complete_the_eval_split(model, digit_shards):
    documents = JoinedShards([digit_shards], "eval")
    config = ConfigDict({"num": 12, "prefix_ratio": 0.0})
    found = prompts.sample_requests(config, documents, 80)
    assert [request.label for request in found] == [*range(10), 0, 1]
    config.prefix_ratio = 0.5
    found = prompts.sample_requests(config, documents, 80)
    assert len({request.source for request in found}) == 12
    for number, request in enumerate(found):
        tokens = documents.parts[0].read([number])[0]
        prefix = model.representation.prompt(tokens, 0.5)
        np.testing.assert_array_equal(request.prompt, [model.representation.bos, *prefix])


def test_guidance_needs_a_model_trained_with_label_dropout(model):
    assert options.resolve_sampling_params(model, {"guidance": 2.0}).guidance == 2.0
    model = dataclasses.replace(model, config=model.config.copy_and_resolve_references())
    model.config.data.label_dropout = 0.0
    with pytest.raises(ValueError, match="guidance is 2.0; .* data.label_dropout"):
        options.resolve_sampling_params(model, {"guidance": 2.0})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints"):
        checkpoint.load(tmp_path)


def test_another_checkpoint_can_be_loaded_and_averages_are_preferred(workdir):
    earlier, last = checkpoint.load(workdir, 2), checkpoint.load(workdir)
    assert (earlier.step, last.step) == (2, 3)
    shapes, where = last.spec.abstract_params, last.spec.param_shardings(last.mesh)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        plain = checkpoints.restore_params(shapes, where)
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), plain, last.params)
    assert all(jax.tree.leaves(differs))
