"""From a workdir to files, by the command that a user gives."""

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

from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.shards.reader import Shards
from data_pipelines.sources import open_source
from data_pipelines.utils.files import WriteError
from evals import digits
from jpeglm_jax import generate as generate_module
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.constraint import constraint
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


def test_every_document_asked_for_is_accounted_for(workdir, tmp_path):
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
    judged = digits.judge(tmp_path)
    assert judged["requested"] == 12
    assert judged["classifier_accuracy"] > 0.97


def test_real_digits_are_recognised(digit_shards, tmp_path):
    from data_pipelines.shards.reader import Shards

    documents = Shards(digit_shards, "eval")
    lines = []
    for number, tokens in enumerate(documents.read(range(60))):
        (tmp_path / f"{number}.jpg").write_bytes(documents.representation.to_bytes(tokens))
        line = {"file": f"{number}.jpg", "label": int(documents.labels[number])}
        lines.append(json.dumps(line | {"valid": documents.representation.validate(tokens).valid}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    judged = digits.judge(tmp_path)
    assert judged["strictly_valid"] == 1.0
    assert judged["recognised"] > 0.95


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--label=10"], "label is 10; this model knows 0 to 9"),
        (["--step=7"], "there is no checkpoint of step 7"),
        (["--num=0"], "num is 0"),
        (["--top_p=2"], "top_p is 2.0"),
        (["--task=2", "--num_tasks=2"], "task is 2; expected 0 to 1"),
        (["--prompts=nowhere"], "nowhere"),
        (["--prompts=tests/golden/convert"], "no image"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(workdir, tmp_path, arguments, sentence):
    result = generate(workdir, tmp_path, *arguments)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def model(workdir):
    return checkpoint.load(workdir)


def draw(model, out, num=7, **options):
    """Constrained: what a model of three steps writes by itself shows nothing."""
    options.setdefault("constraint", constraint(model.representation))
    labels = prompts.every_label(model.representation, num)
    requests = prompts.of_labels(model.representation, labels)
    return generate_module.generate(model, out, requests, SamplingParams(), batch_size=4, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_job_that_was_stopped_goes_on_and_ends_the_same(model, tmp_path, monkeypatch):
    assert draw(model, tmp_path / "whole").requested == 7
    whole = contents(tmp_path / "whole")
    written = []
    original = generate_module._write

    def stop_after_three(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(1)
        return original(*arguments)

    monkeypatch.setattr(generate_module, "_write", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        draw(model, tmp_path / "stopped")
    part = tmp_path / "stopped" / "manifest-00000-of-00001.jsonl"
    assert len(part.read_text().splitlines()) == 3
    assert not (tmp_path / "stopped" / "manifest.jsonl").exists()
    with open(part, "a") as file:
        file.write('{"number": 4, "fi')  # a line that the stop cut short
    monkeypatch.setattr(generate_module, "_write", original)
    draw(model, tmp_path / "stopped")
    stopped = contents(tmp_path / "stopped")
    lines = [json.loads(line) for line in stopped.pop("manifest.jsonl").splitlines()]
    expected = [json.loads(line) for line in whole.pop("manifest.jsonl").splitlines()]
    for line, other in zip(lines, expected, strict=True):
        assert line.pop("log_likelihood") == pytest.approx(other.pop("log_likelihood"), rel=1e-4)
        assert line == other
    assert stopped == whole


@pytest.mark.slow
def test_ctrl_c_ends_in_a_sentence_with_what_is_on_disk(workdir, tmp_path):
    arguments = [f"--workdir={workdir}", f"--out={tmp_path}", "--num=100000"]
    command = [sys.executable, "-m", "jpeglm_jax.generate", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background may ignore it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / "manifest-00000-of-00001.jsonl"
    while not (part.exists() and part.read_text().count("\n") > 10):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"what was drawn is in {tmp_path}, and the same command goes on with it" in errors
    assert "Traceback" not in errors
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    for line in lines:
        assert not line["file"] or (tmp_path / line["file"]).is_file()


def test_tasks_share_the_documents_and_the_last_one_gathers_them(model, tmp_path):
    draw(model, tmp_path / "one")
    assert draw(model, tmp_path / "two", task=1, num_tasks=2) is None
    assert draw(model, tmp_path / "two", task=0, num_tasks=2).requested == 7
    assert not list((tmp_path / "two").glob("manifest-*"))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {k: v for k, v in one.items() if k.endswith("jpg")} == {
        k: v for k, v in two.items() if k.endswith("jpg")
    }


def test_a_finished_job_draws_nothing_and_another_job_is_refused(model, tmp_path, monkeypatch):
    draw(model, tmp_path)
    monkeypatch.setattr(generate_module, "Engine", None)
    assert draw(model, tmp_path).requested == 7
    with pytest.raises(JobError, match="seed is 5 here and 0 there"):
        draw(model, tmp_path, seed=5)


def test_a_full_disk_ends_in_a_sentence_and_keeps_what_is_whole(model, tmp_path, monkeypatch):
    original = generate_module.write_atomically

    def full(path, data):
        if path.name == "000002.jpg":
            raise ShardError(f"cannot write {path}: No space left on device")
        original(path, data)

    monkeypatch.setattr(generate_module, "write_atomically", full)
    with pytest.raises(WriteError, match="No space left"):
        draw(model, tmp_path)
    part = (tmp_path / "manifest-00000-of-00001.jsonl").read_text().splitlines()
    assert len(part) < 7
    assert all((tmp_path / json.loads(line)["file"]).exists() for line in part)
    monkeypatch.setattr(generate_module, "write_atomically", original)
    assert draw(model, tmp_path).requested == 7


def test_beginnings_are_kept_byte_for_byte_and_shown_beside_originals(workdir, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(noise).save(photos / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    arguments = [f"--prompts={photos}", "--prefix_ratio=0.5", "--num=2", "--label=3"]
    result = generate(workdir, tmp_path / "out", *arguments)
    assert result.returncode == 0, result.stderr
    assert "set aside: broken.jpg" in result.stdout
    representation = checkpoint.load(workdir).representation
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for line in map(json.loads, lines):
        original = representation.encode(Image.open(photos / line["source"]))
        given = representation.prompt(original, 0.5)
        assert line["prompt_tokens"] == len(given) > 0 and line["label"] == 3
        if line["file"]:
            drawn = representation.from_bytes((tmp_path / "out" / line["file"]).read_bytes())
            np.testing.assert_array_equal(drawn[: len(given)], given)
    pictures = sorted((tmp_path / "out" / "side_by_side").iterdir())
    assert [Image.open(picture).size for picture in pictures] == [(4 * 49 - 1, 48)] * 3


def test_a_beginning_that_leaves_no_room_is_set_aside(model, tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    representation = model.representation
    media = list(prompts.encoded(representation, open_source(f"folder:{tmp_path}")))
    with pytest.raises(ValueError, match=r"a\.png its beginning takes \d+ of 5 places"):
        prompts.of_beginnings(representation, media, 1.0, length=5)
    with pytest.raises(ValueError, match=r"prefix_ratio is 1\.5"):
        prompts.of_beginnings(representation, media, 1.5, length=80)


def test_held_out_documents_can_be_completed(model, digit_shards, tmp_path):
    shards = Shards(digit_shards, "eval")
    found = prompts.of_beginnings(
        model.representation, prompts.stored(shards), 0.5, num=2, most=3, length=80
    )
    assert len(found.requests) == 6 and len(found.tokens) == 3
    for key, tokens in found.tokens.items():
        number = next(n for n in range(len(shards)) if shards.key(n) == key)
        np.testing.assert_array_equal(tokens, shards.read([number])[0])


def test_a_beginning_that_leaves_no_room_for_a_valid_end_is_set_aside(model, digit_shards):
    stored = prompts.stored(Shards(digit_shards, "eval"))
    found = prompts.of_beginnings(model.representation, stored, 0.5, num=2, most=20, length=80)
    allowed = constraint(model.representation)
    lengths = [len(request.prompt) for request in found.requests]
    needed = allowed.needed(allowed.start([request.prompt for request in found.requests]))
    room = int(np.median(lengths + needed))
    kept = prompts.ending_in_time(found, allowed, room)
    assert 0 < len(kept.set_aside) < 20 and len(kept.requests) == 2 * len(kept.tokens)
    assert len(kept.tokens) + len(kept.set_aside) == 20
    assert f"of {room} places" in kept.set_aside[0][1]
    with pytest.raises(ValueError, match="nothing can be completed: .* takes .* of 9 places"):
        prompts.ending_in_time(found, allowed, 9)


def test_a_run_shows_a_label_each_or_goes_on_from_held_out_documents(model, digit_shards):
    heldout = JoinedShards([digit_shards], "eval")
    sample = ConfigDict({"num": 12, "prefix_ratio": 0.0})
    assert [request.label for request in prompts.of_run(sample, heldout, 80)] == [*range(10), 0, 1]
    sample.prefix_ratio = 0.5
    found = prompts.of_run(sample, heldout, 80)
    assert len({request.source for request in found}) == 12
    for number, request in enumerate(found):
        tokens = heldout.parts[0].read([number])[0]
        given = model.representation.prompt(tokens, 0.5)
        np.testing.assert_array_equal(request.prompt, [model.representation.bos, *given])


def test_guidance_needs_labels_of_which_some_were_left_out(model):
    assert generate_module.chosen_sampling_params(model, {"guidance": 2.0}).guidance == 2.0
    model = dataclasses.replace(model, config=model.config.copy_and_resolve_references())
    model.config.data.label_dropout = 0.0
    with pytest.raises(ValueError, match="it needs a model trained with labels"):
        generate_module.chosen_sampling_params(model, {"guidance": 2.0})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="expected the workdir of a training run"):
        checkpoint.load(tmp_path)


def test_another_checkpoint_can_be_loaded_and_averages_are_preferred(workdir):
    earlier, last = checkpoint.load(workdir, 2), checkpoint.load(workdir)
    assert (earlier.step, last.step) == (2, 3)
    shapes = last.train_step.abstract_state().params
    where = last.train_step.state_shardings(last.mesh).params
    plain = checkpoint.Checkpoints(workdir).restore_params(shapes, where)
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), plain, last.params)
    assert all(jax.tree.leaves(differs))
