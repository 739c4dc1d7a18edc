"""A folder belongs to one generation job, and a task of it to one process."""

import dataclasses
import json

import av
import jax
import numpy as np
import pytest

from data_pipelines import representations
from data_pipelines.media import libav
from data_pipelines.utils.lease import FolderInUse, Lease
from evals.distances import quality
from jpeglm_jax.generation import job, prompts
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.manifest import JobError, claim_folder, is_unfinished, read_manifest
from jpeglm_jax.generation.sampling import Sample, SamplingParams
from tests.data_pipelines.representations.avc.clips import moving
from tests.evals.models import untrained


class Sampler:
    """Stands for the engine: samples a document of three tokens for each prompt."""

    stop_after = 1000

    def __init__(self, *arguments, **options):
        pass

    def __call__(self, params, prompts, numbers):
        for index, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
            if index == self.stop_after:
                raise KeyboardInterrupt
            tokens = np.concatenate([prompt[1:], [number % 256, 2, 3]]).astype(np.int32)
            yield Sample(number, tokens, True, -1.0)


@pytest.fixture(autouse=True)
def sampler(monkeypatch):
    monkeypatch.setattr(job, "Engine", Sampler)


def sample(out, labels=(0, 1, 2, 3), model=None, sampling_params=None, requests=None, **options):
    model = model or untrained()
    requests = requests or prompts.label_requests(model.representation, list(labels))
    return generate(model, out, requests, sampling_params or SamplingParams(), **options)


def completions(ratio, name="a", value=7):
    """Requests that complete a document of 16 tokens."""
    tokens = np.arange(16) + value
    medium = prompts.Medium(name, tokens)
    representation = untrained().representation

    class Cut:
        """Cuts prompts by tokens instead of rows."""

        bos, label_token = representation.bos, representation.label_token

        def prompt(self, tokens, ratio):
            return tokens[: int(len(tokens) * ratio)]

        def prompt_share(self, tokens, ratio):
            return ratio

    return prompts.completion_requests(Cut(), [medium], ratio, num=4, seq_len=80).requests


def other_weights():
    model = untrained()
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["embed"] = params["embed"].at[0, 0].add(1e-3)
    return dataclasses.replace(model, params=params)


OTHERS = {
    "labels is 7 here and '0 to 3 in turn' there": {"labels": [7] * 4},
    "labels is '4 labels": {"labels": [0, 2, 1, 3]},
    "num is 5 here and 4 there": {"labels": [0, 1, 2, 3, 4]},
    "prefix_ratio is 0.5 here and 0.0 there": lambda: {"requests": completions(0.5)},
    "weights is ": lambda: {"model": other_weights()},
    "step is 9 here": lambda: {"model": dataclasses.replace(untrained(), step=9)},
    "temperature is 0.5 here and 1.0 there": {"sampling_params": SamplingParams(temperature=0.5)},
    "top_k is 5 here": {"sampling_params": SamplingParams(top_k=5)},
    "guidance is 2.0 here": {"sampling_params": SamplingParams(guidance=2.0)},
    "constraint is ": lambda: {"constraint": make_constraint(untrained().representation)},
    "seed is 1 here and 0 there": {"seed": 1},
    "num_tasks is 2 here and 1 there": {"num_tasks": 2},
}


@pytest.mark.parametrize("finished", [True, False])
def test_another_job_in_the_same_folder_is_refused_naming_what_differs(
    finished, tmp_path, monkeypatch
):
    if finished:
        assert sample(tmp_path).requested == 4
    else:
        monkeypatch.setattr(Sampler, "stop_after", 2)
        with pytest.raises(KeyboardInterrupt):
            sample(tmp_path)
        monkeypatch.undo()
        monkeypatch.setattr(job, "Engine", Sampler)
        assert is_unfinished(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for named, change in OTHERS.items():
        with pytest.raises(JobError) as error:
            sample(tmp_path, **(change() if callable(change) else change))
        assert named in str(error.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sample(tmp_path).requested == 4
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == [0, 1, 2, 3]


def test_other_prompts_and_another_ratio_are_refused(tmp_path):
    sample(tmp_path, requests=completions(0.5))
    for named, requests in {
        "prefix_ratio is 0.25 here and 0.5 there": completions(0.25),
        "prompts is ": completions(0.5, value=8),
        "sources is ": completions(0.5, name="b"),
    }.items():
        with pytest.raises(JobError, match=named):
            sample(tmp_path, requests=requests)
    assert sample(tmp_path, requests=completions(0.5)).requested == 4


def test_another_size_of_constrained_images_is_refused(tmp_path):
    model = untrained(seq_len=400, strip="none", mode="L", size=None)

    def constrained(size):
        constraint = make_constraint(model.representation, size)
        text = f"{size[0]}x{size[1]}"
        return sample(tmp_path, [0] * 2, model, constraint=constraint, size=text)

    constrained((16, 8))
    with pytest.raises(JobError, match="constraint is .* size is '8x16' here and '16x8' there"):
        constrained((8, 16))
    constrained((16, 8))


def test_equal_weights_are_the_same_job_wherever_they_are_loaded_from(tmp_path):
    sample(tmp_path)
    params = jax.tree.map(lambda leaf: np.array(leaf), untrained().params)
    assert sample(tmp_path, model=dataclasses.replace(untrained(), params=params)).requested == 4


@pytest.mark.parametrize("name", ["000000.jpg", "notes.txt", "job.json"])
def test_a_folder_that_is_no_jobs_is_not_written(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(JobError, match=name):
        sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_the_job_of_another_command_is_refused(tmp_path):
    (tmp_path / "job.json").write_text('{"shards": 3}')
    with pytest.raises(JobError, match="not of a generation job"):
        sample(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(JobError, match="is a file"):
        sample(tmp_path / "out")


def test_two_processes_never_sample_the_same_task(tmp_path):
    with Lease(tmp_path, file="lease-00001-of-00002.json"):
        with pytest.raises(FolderInUse):
            sample(tmp_path, task=1, num_tasks=2)
        assert sample(tmp_path, task=0, num_tasks=2) is None
    assert sample(tmp_path, task=1, num_tasks=2).requested == 4
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 4
    assert not list(tmp_path.glob("lease*"))


def test_a_process_that_lost_its_task_writes_no_more_documents(tmp_path, monkeypatch):
    def lost(self):
        raise FolderInUse("taken over")

    monkeypatch.setattr(Lease, "check", lost)
    with pytest.raises(FolderInUse, match="taken over"):
        sample(tmp_path)
    assert not list(tmp_path.glob("*.jpg")) and not list(tmp_path.glob("manifest*"))


def test_a_finished_job_is_not_written_again(tmp_path):
    sample(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert sample(tmp_path).requested == 4
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (tmp_path / "grid.png").unlink()  # a kill before the last picture
    assert sample(tmp_path).requested == 4
    assert (tmp_path / "grid.png").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": -1}, "seed is -1"),
        ({"task": 2, "num_tasks": 2}, "task is 2"),
        ({"labels": []}, "no document"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(options, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        sample(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_jobs_that_begin_together_do_not_share_a_folder(tmp_path):
    claim_folder(tmp_path, {"seed": 0})
    claim_folder(tmp_path, {"seed": 0})
    with pytest.raises(JobError, match="seed is 1 here and 0 there"):
        claim_folder(tmp_path, {"seed": 1})


def test_damaged_clips_are_encoded_again_under_another_name(tmp_path, monkeypatch):
    representation = representations.make(
        "avc", size=(32, 32), frames=3, slice_mbs=0, strip="headers", num_labels=10
    )
    whole = representation.encode(moving(3, 32, 32))
    second = len(representation.prompt(whole, 0.5))
    documents = [whole, whole[: second + 9], whole[:2]]

    class Clips(Sampler):
        def __call__(self, params, prompts, numbers):
            for number in numbers:
                yield Sample(number, documents[number], True, -1.0)

    monkeypatch.setattr(job, "Engine", Clips)
    model = dataclasses.replace(untrained(), representation=representation)
    counts = sample(tmp_path / "out", (0, 1, 2), model, reencode_damaged=True)
    assert (counts.requested, counts.valid) == (3, 1)
    lines = read_manifest(tmp_path / "out")
    assert [line.get("reencoded") for line in lines] == [None, "000001.reencoded.mp4", ""]
    assert [line["valid"] for line in lines] == [True, False, False]
    found = list(tmp_path.glob("out/*.reencoded.mp4"))
    with av.open(found[0]) as file, libav.messages() as logs:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(found) == 1 and not libav.errors(logs)
    expected = representation.salvage(documents[1]).frames
    assert len(frames) == len(expected) == 3
    assert quality.psnr(frames[0], expected[0]) > 25
    with pytest.raises(JobError, match="reencode_damaged"):
        sample(tmp_path / "out", (0, 1, 2), model)
