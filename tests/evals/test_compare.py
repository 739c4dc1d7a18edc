"""A comparison of two tokenizers of the same files: its budgets, its stages, and its resumption."""

import functools
import json
import threading

import jax
import numpy as np
import pytest

from configs import compare as presets
from data_pipelines.utils import npz
from data_pipelines.utils.lease import FolderInUse, Lease
from evals.compare import compare
from evals.comparison import image_sets, overfit, plan, summary
from evals.comparison.once import Deadline, OutOfTime, share
from evals.features.digit_features import digit_classifier
from evals.inputs.images import open_images
from evals.reporting.results import SettingsError

# A whole comparison is the fixture of most tests; on busy cores it takes minutes.
pytestmark = pytest.mark.timeout(1200)


def tiny():
    config = presets.get_config("digits")
    config.data.update(copies=0, eval_fraction=0.1)
    for name in ("pixel", "vq"):
        del config.candidates[name]
    config.completion.update(num=4, ratios=(0.5,), candidates=("jpeg",))
    config.small_elements, config.references_per_class = ("jpeg",), 3
    config.repeated.candidates = ("jpeg",)
    config.candidates.jpeg_codewords.train_tokenizer.update(vocab_size=700, documents=300)
    config.models = {"tiny": dict(layers=1, width=32, heads=2, kv_heads=2, head_dim=16, ffn=64)}
    config.repeated.update(model="tiny", seeds=2, candidates=("jpeg",))
    config.update(images=400, learning_rates=(1e-2,), sweep=0.2, seq_len=128)
    config.optimizer.warmup_steps = 4
    config.overfit.update(documents=4)
    config.sample.update(num=8, batch_size=8)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    return out, compare(tiny(), out, digit_classifier())


def line(result, candidate, budget):
    (found,) = [
        each
        for each in result["lines"]
        if (each["candidate"], each["budget"]) == (candidate, budget)
    ]
    return found


def test_equal_images_and_equal_flops_are_what_they_are_called(finished):
    _, result = finished
    first, second = (line(result, name, "images") for name in ("jpeg", "jpeg_codewords"))
    step = 16 * 128 / result["candidates"]["jpeg"]["tokens_per_image"]
    assert first["images_seen"] == pytest.approx(second["images_seen"], abs=2 * step)
    assert first["images_seen"] >= 400
    assert second["train_flops"] != first["train_flops"]
    first, second = (line(result, name, "flops") for name in ("jpeg", "jpeg_codewords"))
    assert first["train_flops"] == pytest.approx(second["train_flops"], rel=0.1)
    assert second["images_seen"] != first["images_seen"]


def test_a_line_has_what_was_measured_and_errors_over_seeds(finished):
    out, result = finished
    found = line(result, "jpeg", "flops")
    assert found["seeds"] == 2 and found["bits_per_image_standard_error"] > 0
    assert 0 <= found["valid"] <= 1 and found["images_per_second"] > 0
    assert found["frechet_distance"] > 0 and found["frechet_distance_coded"] > 0
    of_files = result["candidates"]["jpeg"]
    assert of_files["psnr_db"] == result["candidates"]["jpeg_codewords"]["psnr_db"]
    assert 20 < of_files["psnr_db"] < 60
    assert of_files["bits_comparable_with"] == ["jpeg", "jpeg_codewords"]
    assert of_files["floor"]["frechet_distance"] > 0
    archive = result["archives"]["jpeg-tiny-flops-seed1"]
    samples = npz.load(out / archive["path"])
    assert samples["arr_0"].shape == (8, 16, 16, 3) and samples["arr_1"].tolist() == list(range(8))
    assert archive["bytes"] == (out / archive["path"]).stat().st_size
    assert "0.5" in result["completion"]["jpeg"]["table"]["model"]
    assert result["small_elements"]["jpeg"]["table"]
    text = summary.table(result)
    assert text.count("jpeg_codewords") == 2
    page = (out / "compare.html").read_text()
    assert page.count("data:image/png") == 4 and "jpeg_codewords" in page
    assert "Small elements" in page and "Completions of real images" in page
    for name in ("frechet_distance", "valid", "bits_per_image"):
        assert "jpeg_codewords" in (out / "plots" / f"{name}.svg").read_text()
    assert "--config.images=400" in page, "the command gives the result again"
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(result))


def test_a_finished_comparison_is_read_and_another_is_refused(finished):
    out, result = finished
    assert compare(tiny(), out, digit_classifier())["lines"] == result["lines"]
    other = tiny()
    other.images = 500
    with pytest.raises(SettingsError, match=r"images.*400.*500|images.*500.*400"):
        compare(other, out, digit_classifier())


def test_a_stage_that_another_process_works_on_is_waited_for(finished, monkeypatch):
    out, result = finished
    monkeypatch.setattr("evals.comparison.once._WAIT", 0.1)
    stage = out / "stages" / "floor-jpeg.json"
    floor = stage.read_text()
    stage.unlink()
    other = Lease(out / "stages", file="floor-jpeg.lease")
    other.acquire()

    def finish():
        stage.write_text(floor.replace("1000", "999"))
        other.release()

    threading.Timer(1.0, finish).start()
    assert compare(tiny(), out, digit_classifier())["lines"] == result["lines"]
    assert stage.read_text() == floor.replace("1000", "999"), "done by the other process alone"
    stage.write_text(floor)


def test_processes_do_what_the_others_do_not():
    done, in_use = [], {"b": 2, "c": 1}

    def task(name):
        if in_use.get(name):
            in_use[name] -= 1
            raise FolderInUse(name)
        done.append(name)

    share([functools.partial(task, name) for name in "abcd"], Deadline(0))
    assert done == ["a", "d", "c", "b"]


def test_a_comparison_stops_when_its_time_is_over(tmp_path):
    with pytest.raises(OutOfTime):
        compare(tiny(), tmp_path / "out", digit_classifier(), minutes=1e-9)
    assert not (tmp_path / "out" / "compare.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flops_of": "jpg"}, "flops_of.*'jpg'.*jpeg, jpeg_codewords"),
        ({"budgets": ("images", "hours")}, "hours.*images, flops"),
        ({"candidates": {}}, "no candidates"),
        ({"repeated.candidates": ("vqgan",)}, "repeated.*vqgan"),
        ({"long_tail": ("jpeg",)}, "long_tail.*two candidates"),
        ({"repeated.model": "huge"}, "huge.*tiny"),
        ({"data.source": ""}, "--config.data.source"),
        ({"completion.num": 0}, "small_elements.*completion.num"),
    ],
)
def test_a_comparison_that_contradicts_itself_is_refused(changes, words, tmp_path):
    config = tiny()
    for name, value in changes.items():
        holder, _, leaf = name.rpartition(".")
        (config[holder] if holder else config)[leaf] = value
    with pytest.raises(plan.PlanError, match=words):
        compare(config, tmp_path, digit_classifier())


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_preset_can_be_planned(preset):
    config = presets.get_config(preset)
    config.data.source = config.data.source or "folder:PHOTOS"
    plan.check(config)
    runs = plan.runs(config)
    assert len(set(runs)) == len(runs)


def test_the_smallest_model_is_the_first_whatever_its_name():
    config = presets.get_config("photos32_tokens")
    assert plan.models(config) == ["small", "middle"], "by size, not by the alphabet"
    assert {run.model for run in plan.runs(config)[:12]} == {"small"}
    config.models.small.layers = 100
    assert plan.models(config) == ["middle", "small"]


def test_a_tokenizer_that_costs_more_than_the_budget_is_refused():
    config = tiny()
    rows = plan.Layout(128, 16, 40.0, 50.0, 268)
    layouts = {"jpeg": rows, "jpeg_codewords": rows}
    run = plan.Run("jpeg_codewords", "tiny", "flops", 0)
    budget = 10 * plan.flops_per_step(config, "tiny", rows)
    assert plan.steps(config, run, layouts) == 10
    assert plan.steps(config, run, layouts, budget / 2) == 5
    with pytest.raises(plan.PlanError, match="tokenizer of jpeg_codewords"):
        plan.steps(config, run, layouts, budget)


def test_a_longer_document_gets_longer_rows_and_fewer(finished):
    out, _ = finished
    config = tiny()
    config.seq_len, config.batch_size = 32, 64
    rows = plan.layout(config, out / "data" / "jpeg", 2)
    assert rows.seq_len % 64 == 0 and rows.seq_len > 32
    assert rows.seq_len * rows.batch_size == 32 * 64


def test_tokens_are_determined_where_no_other_document_continues_differently():
    documents = [np.array([1, 2, 3]), np.array([1, 2, 4]), np.array([5]), np.array([1, 2])]
    used = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    found = overfit.determined(documents, np.zeros((4, 4), np.int32), used)
    expected = [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_what_cannot_be_learned_by_heart_is_refused(finished):
    out, _ = finished
    from data_pipelines.shards.reader import Shards
    from jpeglm_jax.parallel.sharding import make_mesh

    config, folder = tiny(), out / "data" / "jpeg"
    shards = Shards(folder)
    run = plan.Run("jpeg", "tiny", "flops", 0)
    trained = plan.train_config(config, run, folder, plan.layout(config, folder, 1), 1, 1e-9)
    mesh = make_mesh({"replica": 1}, devices=jax.devices()[:1])
    documents = shards.read([0, 1])
    with pytest.raises(overfit.OverfitError, match="jpeg .*after 2 steps"):
        overfit.overfit(trained, shards.representation, documents, mesh, 2)


def test_samples_that_are_not_scored_cannot_be_analysed(tmp_path):
    with pytest.raises(plan.PlanError, match="small_elements needs features"):
        compare(tiny(), tmp_path, None)


def test_references_have_even_classes(tmp_path):
    assert image_sets.write_references("digits", tmp_path / "some", 3) == 30
    some = open_images(f"folder:{tmp_path / 'some'}")
    assert [some.label(number) for number in range(30)] == sorted([*range(10)] * 3)
    with pytest.raises(ValueError, match="no classes"):
        image_sets.write_references(f"folder:{tmp_path / 'some' / '0'}", tmp_path / "others", 3)
