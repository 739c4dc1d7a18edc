"""The command: a whole run, its exact resumption, and a model on its codes."""

import json
import os
import shutil
import signal

import pytest
from PIL import Image

from configs import vq
from data_pipelines import representations
from data_pipelines.representations.vq.weights import TOKENIZER_FILE
from data_pipelines.shards.reader import Shards
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.supervision.preemption import Interrupted
from jpeglm_jax.tokenizer.metrics import Meter
from jpeglm_jax.train import train
from jpeglm_jax.train_tokenizer import train_tokenizer, trained_tokenizer, with_tokenizer
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.checkpoint import CheckpointError
from jpeglm_jax.training.data import check_representation
from tests.data_pipelines.representations.vq.tokenizers import file, shape
from tests.jpeglm_jax.tokenizer.runs import tiny

TIMINGS = ("perf/images_per_second", "perf/goodput")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("tokenizer")
    evaluated = train_tokenizer(tiny(), folder)
    assert 0 < evaluated["eval/psnr"] < 30 and 0 < evaluated["eval/codes_used"] <= 1
    return folder


def lines(folder):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in found]


def test_a_run_logs_its_losses_and_shows_reconstructions(straight):
    by_step = {line["step"]: line for line in lines(straight) if "train/total_loss" in line}
    assert sorted(by_step) == [1, 2, 3, 4, 5, 6]
    assert "train/adversarial" not in by_step[3] and "train/discriminator" in by_step[4]
    assert {"train/perceptual", "train/commitment", "train/restarts"} <= by_step[1].keys()
    assert [line["step"] for line in lines(straight) if "eval/perplexity" in line] == [3, 6]
    # Four images above their reconstructions.
    assert Image.open(straight / "samples" / "step_00000006.png").size == (4 * 49 - 1, 2 * 49 - 1)


@pytest.mark.parametrize(
    "stop", ["crash", pytest.param(signal.SIGTERM, marks=pytest.mark.slow, id="signal")]
)
def test_a_run_that_was_stopped_resumes_to_the_same_bytes(straight, tmp_path, monkeypatch, stop):
    add, seen = Meter.add, []

    def add_and_stop(meter, values, images):
        add(meter, values, images)
        seen.append(values)
        if len(seen) == 5:
            if stop == "crash":
                raise MemoryError
            os.kill(os.getpid(), stop)

    monkeypatch.setattr(Meter, "add", add_and_stop)
    shutil.copytree(straight / "data", tmp_path / "data")
    with pytest.raises(MemoryError if stop == "crash" else Interrupted):
        train_tokenizer(tiny(), tmp_path)
    assert not (tmp_path / TOKENIZER_FILE).exists()
    monkeypatch.undo()
    train_tokenizer(tiny(), tmp_path)
    assert (tmp_path / TOKENIZER_FILE).read_bytes() == (straight / TOKENIZER_FILE).read_bytes()
    assert lines(tmp_path) == lines(straight)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"quantizer.codes": 32}, "codes"), ({"loss.adversarial.weight": 0.2}, "adversarial.weight")],
)
def test_another_tokenizer_is_refused(straight, changes, name):
    with pytest.raises(CheckpointError, match=name):
        trained_tokenizer(tiny(**changes), straight)
    with pytest.raises(CheckpointError, match=name):
        train_tokenizer(tiny(**changes), straight)


def test_a_model_trains_on_the_codes_of_its_own_tokenizer(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("data"))
    config = vq.get_config("digits")
    config.tokenizer = tiny()
    config.representation.size = 8
    config.steps, config.batch_size, config.seq_len = 2, 8, 34
    config.data.copies = 1
    config.model.update(layers=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn=16)
    config.log.every = config.evaluate.every = 2
    config.sample.every = 0
    evaluated = train(config, tmp_path)
    assert evaluated["eval/bits_per_image"] > 0
    model = checkpoint.load(tmp_path)
    representation = model.representation
    assert representation.weights == (straight / TOKENIZER_FILE).read_bytes()
    assert representation.num_labels == 10
    shards = Shards(tmp_path / "data", "train")
    assert set(shards.lengths.tolist()) == {16}
    assert len(shards) == 2 * shards.manifest["splits"]["train"]["images"]
    config.data.shards = str(tmp_path / "data")
    check_representation(config.representation, representation)  # no weights: the shards' own
    (tmp_path / TOKENIZER_FILE).write_bytes(file(shape(code_dim=2)))
    config.representation.weights = str(tmp_path / TOKENIZER_FILE)
    with pytest.raises(CheckpointError, match="weights"):
        check_representation(config.representation, representation)
    counts = generate(
        model,
        tmp_path / "samples",
        prompts.label_requests(representation, [0, 1, 2]),
        SamplingParams(),
        constraint=make_constraint(representation),
    )
    assert counts.valid == 3
    assert representations.load(tmp_path / "samples") == representation


def test_weights_or_shards_that_are_named_are_used_as_they_are(tmp_path):
    for changes in ({"representation.weights": "RUN"}, {"data.shards": "SHARDS"}):
        config = vq.get_config("digits")
        config.update_from_flattened_dict(changes)
        assert with_tokenizer(config, tmp_path) is config
    assert not any(tmp_path.iterdir())
