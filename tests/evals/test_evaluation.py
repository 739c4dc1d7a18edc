"""evals.evaluation and evals.fid: metrics with their metadata, the codec floor, resuming."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from evals import metrics
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.evaluation import evaluate
from evals.features import extractors
from evals.features.base import FeatureError
from evals.features.features import extract
from evals.inputs.codec import GeneratedError, GeneratedImages
from evals.inputs.images import FittedImages, open_images
from tests.evals.inputs.test_images import photo
from tests.evals.plugin import patches
from tests.evals.reference import PARTIAL, PHOTOS
from tests.evals.schema import follows_schema

ROOT = pathlib.Path(__file__).parents[2]
JPEG = representations.make("jpeg", size=32, quality=25)


def write_photos(folder, numbers, size=(40, 36)):
    folder.mkdir(parents=True)
    for number in numbers:
        noise = np.random.default_rng(number).normal(0, 15, (*size[::-1], 3))
        pixels = np.clip(photo(number, size) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def write_generated(folder, count=24, damaged=(), absent=(), nonsense=()):
    """As a generate job writes it. Damage is a byte inside the scan; nonsense is not JPEG."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        tokens = JPEG.encode(Image.fromarray(photo(number, (40, 36))))
        if number in damaged:
            tokens = tokens.copy()
            tokens[90:94] = 255
        name = "" if number in absent else f"{number:06d}.jpg"
        if name:
            data = b"nonsense" if number in nonsense else JPEG.to_bytes(tokens)
            (folder / name).write_bytes(data)
        valid = not (number in damaged or number in absent or number in nonsense)
        assert number in (*absent, *nonsense) or JPEG.validate(tokens).valid == valid
        lines.append(json.dumps({"file": name, "number": number, "valid": valid, "label": -1}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def generated(tmp_path):
    return write_photos(tmp_path / "generated", range(30))


@pytest.fixture
def references(tmp_path):
    return write_photos(tmp_path / "references", range(100, 140))


def run(generated, references, out, **options):
    options.setdefault("extractor", patches())
    return evaluate(str(generated), references and str(references), out, **options)


def test_metrics_are_written_with_counts_errors_settings_and_versions(
    generated, references, tmp_path
):
    found = run(generated, references, tmp_path / "out")
    assert follows_schema(found, tmp_path / "out" / "metrics.json")
    assert (found["n_generated"], found["n_references"]) == (30, 40)
    assert found["frechet_distance"] > 0 and found["frechet_distance_standard_error"] > 0
    assert {"kernel_distance", "precision", "recall", "density", "coverage"} <= found.keys()
    settings = found["features"]["generated"]
    assert settings["settings"] == {"version": "1"} and len(settings["inputs"]) == 16
    assert found["versions"]["jax"] and found["sizes"]["generated"] == {"40 x 36": 30}


def test_only_inception_features_give_fid(generated, references, tmp_path):
    found = run(generated, references, tmp_path / "out")
    assert not {"fid", "kid", "sfid", "inception_score"} & found.keys()


def test_the_value_is_the_distance_of_the_saved_statistics(generated, references, tmp_path):
    found = run(generated, references, tmp_path / "out")
    (ours, _), (theirs, _) = (
        Statistics.load(tmp_path / "out" / side / "stats.npz")
        for side in ("generated", "references")
    )
    assert found["frechet_distance"] == pytest.approx(frechet(ours, theirs), rel=1e-9)


def test_steps_can_be_run_one_by_one(generated, references, tmp_path):
    whole = run(generated, references, tmp_path / "whole")
    out = tmp_path / "steps"
    assert run(generated, references, out, until="features") == {}
    assert not (out / "generated" / "stats.npz").exists()
    assert run(generated, references, out, until="stats") == {}
    assert (out / "generated" / "stats.npz").exists() and not (out / "metrics.json").exists()
    steps = run(generated, references, out)
    assert steps | {"command": whole["command"]} == whole


def test_references_of_an_earlier_evaluation_need_no_network(generated, references, tmp_path):
    whole = run(generated, references, tmp_path / "one")
    earlier = tmp_path / "one"
    again = run(earlier / "generated", earlier / "references", tmp_path / "two", extractor=None)
    assert again["frechet_distance"] == whole["frechet_distance"]
    assert again["recall"] == whole["recall"]
    with pytest.raises(FeatureError, match="give --weights"):
        run(generated, references, tmp_path / "three", extractor=None)


def test_statistics_alone_give_the_distance_and_name_what_is_missing(
    generated, references, tmp_path
):
    whole = run(generated, references, tmp_path / "one")
    stats = tmp_path / "one" / "references" / "stats.npz"
    found = run(generated, stats, tmp_path / "two")
    assert found["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-9)
    assert "only statistics" in found["not_computed"]["precision"]
    assert found["n_references"] == 40


def test_statistics_of_other_tools_are_used_with_a_warning(generated, references, tmp_path):
    whole = run(generated, references, tmp_path / "one")
    ours, _ = Statistics.load(tmp_path / "one" / "references" / "stats.npz")
    np.savez(tmp_path / "theirs.npz", mu=ours.mean, sigma=ours.covariance)
    found = run(generated, tmp_path / "theirs.npz", tmp_path / "two")
    assert found["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-6)
    assert found["n_references"] is None
    assert any("does not state its network" in text for text in found["warnings"])


def test_statistics_of_other_settings_are_rejected(generated, references, tmp_path):
    run(generated, references, tmp_path / "one", extractor=patches("1"))
    stats = tmp_path / "one" / "references" / "stats.npz"
    with pytest.raises(
        FeatureError, match=r"version is '2' for .*generated and '1' for .*stats.npz"
    ):
        run(generated, stats, tmp_path / "two", extractor=patches("2"))
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(FeatureError, match="48 dimensions, .*other.npz of 5"):
        run(generated, tmp_path / "other.npz", tmp_path / "three")


def test_overlapping_folders_are_rejected(generated, tmp_path):
    for references in (generated, tmp_path):
        with pytest.raises(FeatureError, match="overlap"):
            run(generated, references, tmp_path / "out")


def test_copies_of_references_are_counted(generated, references, tmp_path):
    copy = (references / "100.png").read_bytes()
    (generated / "copy.png").write_bytes(copy)
    found = run(generated, references, tmp_path / "out")
    assert found["identical_images"] == 1
    assert any("pixel for pixel" in warning for warning in found["warnings"])


def test_too_few_images_for_a_metric_leave_the_others(tmp_path):
    generated = write_photos(tmp_path / "generated", range(4))
    references = write_photos(tmp_path / "references", range(100, 104))
    found = run(generated, references, tmp_path / "out")
    assert found["frechet_distance"] > 0 and found["frechet_distance_standard_error"] is None
    assert found["kernel_distance"] and 0 <= found["precision"] <= 1
    assert found["not_computed"]["coverage"].startswith("found 4 images, expected more than 5")
    assert "at least 100" in found["not_computed"]["frechet_distance_infinity"]


def test_one_image_is_too_few_for_anything(references, tmp_path):
    generated = write_photos(tmp_path / "generated", [1])
    with pytest.raises(FeatureError, match=r"generated: found features of shape \(1, 48\)"):
        run(generated, references, tmp_path / "out")


def test_damaged_and_mixed_files_are_reported(generated, references, tmp_path):
    (generated / "bad.png").write_bytes(b"no image")
    Image.fromarray(photo(3, (50, 20))).save(generated / "wide.png")
    found = run(generated, references, tmp_path / "out")
    assert found["n_generated"] == 31
    assert [name for name, _ in found["rejected"]["generated"]] == ["bad.png"]
    text = " ".join(found["warnings"])
    assert "images of 2 sizes" in text and "1 files of" in text and "bad.png" in text


# Codec numbers


def test_the_floor_and_both_kinds_of_references_are_compared(references, tmp_path):
    generated = write_generated(tmp_path / "generated")
    found = run(generated, references, tmp_path / "out", representation=JPEG)
    whole = found["frechet_distance"]
    coded = found["against_coded_references"]["frechet_distance"]
    floor = found["floor"]["frechet_distance"]
    assert 0 < floor < min(whole, coded) and whole != coded
    sizes = {name: list(sizes) for name, sizes in found["sizes"].items()}
    assert sizes == {name: ["32 x 32"] for name in ("generated", "references", "references_coded")}
    without = run(generated, references, tmp_path / "two", representation=JPEG, floor=False)
    assert "floor" not in without and without["frechet_distance"] == whole


def test_cached_references_on_both_sides_of_the_codec(references, tmp_path):
    generated = write_generated(tmp_path / "generated")
    first = run(generated, references, tmp_path / "one", representation=JPEG)
    again = run(
        generated,
        tmp_path / "one" / "references" / "stats.npz",
        tmp_path / "two",
        representation=JPEG,
        references_coded=str(tmp_path / "one" / "references_coded" / "stats.npz"),
    )
    for name in ("floor", "against_coded_references"):
        expected = first[name]["frechet_distance"]
        assert again[name]["frechet_distance"] == pytest.approx(expected, rel=1e-9)


def test_every_requested_document_counts(references, tmp_path):
    generated = write_generated(
        tmp_path / "generated", damaged=(3, 4), absent=(7,), nonsense=(9, 10)
    )
    found = run(generated, references, tmp_path / "out", representation=JPEG)
    codec = found["codec"]
    assert codec["requested"] == found["n_generated"] == 24
    assert (codec["strictly_valid"], codec["salvaged"], codec["failed"]) == (19, 2, 3)
    assert 19 * 4 <= codec["units"] < 21 * 4 and codec["expected_units"] == 24 * 4
    assert found["rejected"]["generated"] == []


def test_a_document_that_does_not_decode_is_grey(tmp_path):
    images = GeneratedImages(write_generated(tmp_path / "generated", absent=(1,)), JPEG)
    decoded = [images.decode(number, images.read(number)) for number in (0, 1)]
    assert np.asarray(decoded[1]).min() == np.asarray(decoded[1]).max() == 128
    assert decoded[0].size == (32, 32)


def test_without_a_representation_pillow_decodes_damaged_files(tmp_path):
    folder = write_generated(tmp_path / "generated", damaged=(3,), nonsense=(5,))
    outcome = GeneratedImages(folder).outcome
    assert (outcome.requested, outcome.strictly_valid, outcome.salvaged) == (24, 22, 1)
    assert outcome.failed == 1 and outcome.units is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is damaged"),
        ('{"file": "a.jpg"}', "line 1 is damaged"),
        ('{"file": "../a.jpg", "valid": true}', "no file of the folder"),
        ('{"file": "absent.jpg", "valid": true}', "has no absent.jpg"),
        ("", "is empty"),
    ],
)
def test_a_damaged_manifest_is_rejected(tmp_path, line, message):
    (tmp_path / "manifest.jsonl").write_text(line)
    with pytest.raises(GeneratedError, match=message):
        GeneratedImages(tmp_path)


# Inception


@pytest.mark.skipif(not PARTIAL.is_file(), reason=f"no {PARTIAL.name} next to the repository")
def test_fid_states_its_dimensions_and_weights(tmp_path):
    generated = write_photos(tmp_path / "generated", range(6))
    references = write_photos(tmp_path / "references", range(100, 106))
    extractor = extractors.make("inception", weights=str(PARTIAL), dims=64)
    found = run(generated, references, tmp_path / "out", extractor=extractor)
    assert found["fid"] > 0 and "frechet_distance" not in found
    settings = found["features"]["generated"]["settings"]
    assert (settings["dims"], settings["resize"]) == (64, "clean")
    text = " ".join(found["warnings"])
    assert "FID of 64 dimensions" in text and "known files" in text
    torch = extractors.make("inception", weights=str(PARTIAL), dims=64, preset="torch")
    with pytest.raises(FeatureError, match="resize is 'torch' for .* and 'clean' for"):
        run(generated, tmp_path / "out/references/stats.npz", tmp_path / "two", extractor=torch)


@pytest.mark.slow
@pytest.mark.skipif(
    not (PARTIAL.is_file() and PHOTOS.is_dir()),
    reason="no partial weights or photos next to the repository",
)
def test_the_floor_rises_as_quality_falls(tmp_path):
    """Photos through the codec, at 768 dimensions."""
    paths = sorted((PHOTOS / "clothing").rglob("*.jpg"))[::6]
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(paths):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(path.read_bytes())
    extractor = extractors.make("inception", weights=str(PARTIAL), dims=768)
    images = open_images(str(tmp_path / "photos"))
    floors = []
    for quality in (75, 25, 10, 5):
        representation = representations.make("jpeg", size=256, quality=quality)
        sides = []
        for coded in (False, True):
            fitted = FittedImages(images, representation, coded=coded)
            out = tmp_path / (f"{quality}" if coded else "plain")
            found = extract(fitted, extractor, out)
            sides.append(metrics.Side("", Statistics.of(found.main), found.metadata, found))
        floors.append(metrics.compare(sides[1], sides[0]).values["fid"])
    assert floors == sorted(floors) and floors[0] < 0.5 * floors[-1]


# The command


def fid(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "evals.fid", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_evaluates_digits_without_any_weights(tmp_path):
    from sklearn import datasets

    folder = tmp_path / "generated"
    folder.mkdir()
    for number, image in enumerate(datasets.load_digits().images[:60]):
        Image.fromarray(np.rint(image.T * 15).astype(np.uint8)).save(folder / f"{number}.png")
    result = fid(f"--generated={folder}", "--references=digits", f"--out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert "frechet_distance" in result.stdout and "60 generated, 1,797 references" in result.stdout
    assert "fid" not in result.stdout.lower().replace("fidelity", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --generated or --workdir"),
        (["--generated=digits"], "give --weights=FILE"),
    ],
)
def test_unusable_arguments_give_one_message(tmp_path, arguments, message):
    result = fid(*arguments, f"--out={tmp_path}")
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr
