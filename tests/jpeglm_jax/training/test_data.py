"""What a run trains on: several folders, in shares that change, with damage in one of them."""

import json
import pathlib

import pytest
from etils import epath

from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import DamagedShard
from jpeglm_jax.compilation.report import make_train_step as make_report_step
from jpeglm_jax.train import train
from jpeglm_jax.training.data import open_data
from jpeglm_jax.training.step import make_train_step
from tests.jpeglm_jax.conftest import tiny


@pytest.fixture
def more_digits(tmp_path):
    """The digits again, other images held out of them: a second folder of shards."""
    return prepare(
        source="digits",
        representation=tiny().representation.to_dict(),
        out=tmp_path / "more",
        conditional=True,
        eval_fraction=0.05,
        workers=1,
    )


def lines(workdir):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_mixes_folders_in_shares_that_change_at_a_step(
    digit_shards, more_digits, tmp_path, capsys
):
    changes = {"data.shards": f"{digit_shards},{more_digits}", "evaluate.every": 6}
    config = tiny(6, **changes)
    config.data.mixture_weights = ((0, (1, 0)), (3, (1, 3)))
    last = train(config, tmp_path / "run")
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("train split: ")]
    for shares in ("row 0", "1 : 0", "row 24", "0.25 : 0.75"):
        assert shares in line
    assert last["eval/loss"] > 0
    meta = json.loads((tmp_path / "run" / "config.json").read_text())
    assert meta["data"]["mixture_weights"] == [[0, [1, 0]], [3, [1, 3]]]


def test_a_run_that_prepares_its_source_trains_the_tokenizer_that_its_configuration_asks_for(
    tmp_path,
):
    config = tiny(2)
    config.data.update(source="digits", eval_fraction=0.1)
    config.data.train_tokenizer.update(vocab_size=640, kind="codewords", documents=200)
    data = open_data(config, epath.Path(tmp_path))
    assert data.representation.num_codes == 640
    assert make_report_step(config, "cpu").model.config.vocab_size == 640 + 1000
    again = open_data(config, epath.Path(tmp_path))
    assert again.representation == data.representation


def test_weights_for_other_folders_are_refused_in_words(digit_shards, tmp_path):
    config = tiny(2, **{"data.shards": digit_shards})
    config.data.mixture_weights = (3, 1)
    with pytest.raises(ValueError, match=r"2 weights, \[3.0, 1.0\].* 1 plans"):
        train(config, tmp_path)


def test_a_damaged_shard_stops_a_run_or_is_skipped_and_counted(digit_shards, more_digits, tmp_path):
    path = next(more_digits.glob("train-00000*.array_record"))
    path.write_bytes(path.read_bytes()[:1000])
    config = tiny(6, **{"data.shards": str(more_digits)})
    with pytest.raises(DamagedShard, match=f"{path}.*--config.data.on_damage=skip"):
        train(config, tmp_path / "stopped")
    config.data.on_damage = "skip"
    train(config, tmp_path / "skipped")
    counts = [line.get("train/damaged_documents", 0) for line in lines(tmp_path / "skipped")]
    assert counts[-1] > 0


def test_the_documents_of_a_row_are_those_that_the_plan_allows(digit_shards, tmp_path):
    config = tiny(**{"data.shards": digit_shards})
    data = open_data(config, epath.Path(tmp_path))
    plans = data.train_loader.plan, data.eval_loader.plan
    needed = 1 + max(plan.max_documents for plan in plans)  # one of padding
    assert data.max_documents == needed > 2
    for configured, expected in ((0, needed), (needed, needed), (needed + 3, needed + 3)):
        config.model.max_documents = configured
        step = make_train_step(config, data.representation, "cpu", data.max_documents)
        assert step.model.config.max_documents == expected
    config.model.max_documents = needed - 1
    with pytest.raises(ValueError, match=f"may put {needed} .* model.max_documents={needed}"):
        make_train_step(config, data.representation, "cpu", data.max_documents)
