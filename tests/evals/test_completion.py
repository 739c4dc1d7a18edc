"""evals.completion: prompts, the table with its codec floor, grids, half-size images."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from evals.completion import completion, table
from evals.features import half_size
from evals.features.base import Extractor
from evals.features.half_size import on_active_region
from evals.inputs.documents import Documents
from evals.inputs.images import open_images
from evals.report import report
from evals.reporting.results import Evaluation, SettingsError
from evals.sections.kinds import KINDS
from jpeglm_jax.generation.sampling import SamplingParams
from tests.evals.models import untrained
from tests.evals.plugin import patches
from tests.evals.reporting.reader import read
from tests.evals.schema import follows_schema
from tests.evals.test_evaluation import write_photos

OPTIONS = {"size": 32, "quality": 25}
COUNT = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = write_photos(tmp_path_factory.mktemp("photos") / "photos", range(COUNT))
    (folder / "broken.png").write_bytes(b"not an image")
    return str(folder)


@pytest.fixture(scope="module")
def model():
    return untrained(seq_len=200, num_labels=0, **OPTIONS)


@pytest.fixture(scope="module")
def completed(model, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("completion")
    return out, run(model, photos, out)


def run(model, photos, out, references=None, **options):
    documents = Documents(photos, model.representation)
    options = {
        "ratios": (0.5,),
        "unconditional": True,
        "seeds": 2,
        "batch_size": COUNT,
        "sampling_params": SamplingParams(top_k=20),
        **options,
    }
    references = references or photos
    return completion(model, documents, references, out, extractor=patches(), **options)


def test_every_completion_begins_with_its_prompt(model, photos, completed):
    out, found = completed
    documents = {document.key: document for document in Documents(photos, model.representation)}
    files = []
    for seed in range(2):
        folder = out / "ratio-0.5" / f"seed-{seed}"
        lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        assert [line["source"] for line in lines] == list(documents)
        for line in lines:
            document = documents[line["source"]]
            prompt = model.representation.to_bytes(
                model.representation.prompt(document.tokens, 0.5)
            )
            assert line["prompt_tokens"] > 60
            if line["file"]:  # an untrained model also samples tokens that are not bytes
                assert (folder / line["file"]).read_bytes().startswith(prompt)
        files.append([(line["file"] and (folder / line["file"]).read_bytes()) for line in lines])
    both = [(a, b) for a, b in zip(*files, strict=True) if a and b]
    assert len(both) > 2 and all(a != b for a, b in both)
    unconditional = out / "unconditional" / "seed-0" / "manifest.jsonl"
    assert {
        json.loads(line)["prompt_tokens"] for line in unconditional.read_text().splitlines()
    } == {0}
    assert follows_schema(found, out / "completion.json")


def test_the_table_has_all_columns_and_the_floor(completed):
    out, found = completed
    assert found["metric"] == "frechet_distance"
    floor = found["table"]["floor: references through the codec"]
    ours = found["table"]["model"]
    assert list(floor) == list(ours) == ["0.5", "unconditional"]
    assert floor["0.5"]["value"] == floor["unconditional"]["value"]
    metric = found["completions"][0]["metrics"]["floor"]
    error = metric.get("frechet_distance_standard_error")  # not that of equal seeds, 0
    assert floor["0.5"]["standard_error"] == error
    assert not any("seed-" in text for text in found["warnings"])
    assert 0 < floor["0.5"]["value"] < ours["0.5"]["value"] < ours["unconditional"]["value"]
    values = [
        json.loads((out / "evaluations" / "ratio-0.5" / f"seed-{seed}/metrics.json").read_text())
        for seed in range(2)
    ]
    values = [value["frechet_distance"] for value in values]
    assert ours["0.5"]["seeds"] == values
    assert ours["0.5"]["value"] == pytest.approx(np.mean(values))
    assert ours["0.5"]["standard_error"] == pytest.approx(np.std(values, ddof=1) / 2**0.5)
    assert (found["n_generated"], found["n_references"]) == (COUNT, COUNT)
    assert [name for name, _ in found["rejected"]] == ["broken.png"]
    text = table(found)
    assert "prompt 0.5" in text and "unconditional" in text and "floor" in text
    assert f"of {2 * COUNT} continuations of 0.5" in text and f"of {2 * COUNT} samples" in text
    for name in found["grids"].values():
        picture = Image.open(out / name)  # 8 originals, tiles of 64 pixels
        real = 2 if name.startswith("ratio") else 1  # columns of what no model made
        assert picture.size == ((real + 2) * 65 - 1, 8 * 65 - 1)
        broken = (np.asarray(picture) == (200, 60, 60)).all(axis=-1)
        assert not broken[:, : real * 65].any()


def test_a_report_shows_the_table_and_the_grids(completed, tmp_path):
    out, _ = completed
    report([], [Evaluation.read(out, tuple(KINDS))], tmp_path / "report.html")
    section = read((tmp_path / "report.html").read_text()).by_id("completion")
    assert len(section.all("img")) == 2 and "floor" in section.one("table").text
    heads = [
        [each.text for each in strip.one(cls="heads").all("span")]
        for strip in section.all(cls="strip")
    ]
    seeds = ["seed 0", "seed 1"]
    assert heads == [["original", "prompt", *seeds], ["original", *seeds]]
    captions = [strip.one(cls="caption").text for strip in section.all(cls="strip")]
    assert "continuations" in captions[0] and "samples" in captions[1]
    (out / "unconditional" / "grid.png").rename(out / "unconditional" / "gone.png")
    report([], [Evaluation.read(out, tuple(KINDS))], tmp_path / "report.html")
    (out / "unconditional" / "gone.png").rename(out / "unconditional" / "grid.png")
    section = read((tmp_path / "report.html").read_text()).by_id("completion")
    assert len(section.all("img")) == 1
    assert "unconditional/grid.png" in section.one(cls="warnings").text


def test_completions_of_other_settings_are_rejected(model, photos, completed):
    out, _ = completed
    with pytest.raises(SettingsError, match="seed is 5 here and 0 there"):
        run(model, photos, out, seed=5)


def test_a_second_run_generates_nothing_again(model, photos, completed):
    out, found = completed
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert run(model, photos, out) == found
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")} == times


def test_references_may_be_features_already(model, photos, completed, tmp_path):
    out, found = completed
    extracted = out / "evaluations" / "ratio-0.5" / "seed-0"
    again = run(
        model,
        photos,
        tmp_path,
        str(extracted / "references"),
        references_coded=str(extracted / "references_coded"),
        seeds=1,
    )
    for row, columns in found["table"].items():
        for column, cell in columns.items():
            values = cell.get("seeds") or [cell["value"]]
            assert again["table"][row][column]["value"] == values[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": (1.0,)}, "a ratio is 1.0"),
        ({"ratios": (), "unconditional": False}, "--ratios"),
        ({"seeds": 0}, "seeds is 0"),
        ({"conditioning": "label"}, "labels"),
    ],
)
def test_invalid_settings_are_rejected(model, photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, photos, tmp_path, **options)


def test_prompts_as_long_as_the_sequence_length_are_rejected(model, photos, tmp_path):
    config = model.config.copy_and_resolve_references()
    config.seq_len = 24
    with pytest.raises(ValueError, match="sequence length of 24"):
        run(dataclasses.replace(model, config=config), photos, tmp_path)


def test_half_size_images_and_features_of_their_active_region(photos, tmp_path):
    grey = representations.make("jpeg", size=32, mode="L", quality=50)
    rejected = half_size.write(open_images(photos), grey, tmp_path / "half", 0, 0)
    assert [name for name, _ in rejected] == ["broken.png"]
    names = sorted((tmp_path / "half").glob("*.png"))
    assert len(names) == COUNT
    image = Image.open(names[0])
    pixels = np.array(image)
    assert image.size == (32, 32) and image.mode == "L"
    wanted = grey.fit(open_images(photos).decode(0, open_images(photos).read(0)))
    small = wanted.resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[8:24, 8:24], np.asarray(small))
    pixels[8:24, 8:24] = 0
    assert not pixels.any()

    seen = []
    plain = Extractor("size", "x", {}, lambda pixels: seen.append(pixels.shape) or pixels, dict)
    cropped = on_active_region(plain)
    cropped.prepare(np.zeros((32, 48, 3), np.uint8))
    assert seen == [(16, 24, 3)] and cropped.fingerprint != plain.fingerprint


def test_half_size_needs_images(digit_shards, tmp_path):
    shards = open_images(f"shards:{digit_shards}:eval")
    with pytest.raises(ValueError, match="give --images"):
        half_size.write(shards, representations.load(digit_shards), tmp_path, 0, 0)
