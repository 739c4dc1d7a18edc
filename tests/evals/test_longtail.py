"""evals.longtail: correlations of two models by class, skipped classes, tables of frequencies."""

import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from evals.distances import correlation
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.longtail import TableError, longtail, read_frequencies, table
from evals.report import report
from evals.reporting.results import Evaluation
from evals.sections.kinds import KINDS
from tests.evals.plugin import patches
from tests.evals.reporting.reader import read
from tests.evals.schema import follows_schema

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
FREQUENCIES = {name: 10.0**power for power, name in enumerate(CLASSES)}


def write(folder, seed, noise_of, manifest=False, count=14):
    """Images of every class, its colour plus noise; as class folders, or with a manifest."""
    lines = []
    for label, name in enumerate(CLASSES):
        for number in range(count):
            rng = np.random.default_rng((seed, label, number))
            colour = np.random.default_rng(label).uniform(80, 170, 3)
            pixels = colour + rng.normal(0, 10, (4, 4, 3)) + rng.normal(0, noise_of(label), 3)
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            target = folder if manifest else folder / name
            target.mkdir(parents=True, exist_ok=True)
            file = f"{label}-{number}.png"
            image.resize((16, 16), Image.Resampling.NEAREST).save(target / file)
            lines.append(json.dumps({"file": file, "valid": True, "label": label}))
    if manifest:
        (folder / "manifest.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("longtail")
    return {
        # a is worse on more frequent classes; b is equally good on all.
        "a": write(folder / "a", 1, lambda label: 6.0 * label, manifest=True),
        "b": write(folder / "b", 2, lambda label: 6.0),
        "references": write(folder / "real", 3, lambda label: 1.0),
    }


def test_features_that_are_there_are_not_computed_again(folders, tmp_path):
    first = longtail(**folders, frequencies=FREQUENCIES, out=tmp_path / "one", extractor=patches())
    there = {side: tmp_path / "one" / side for side in folders}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    out = tmp_path / "two"
    second = longtail(
        **folders, frequencies=FREQUENCIES, out=out, extractor=patches(), folders=there
    )
    assert second["classes"] == first["classes"] and not list(out.rglob("*.npz"))
    assert written and written == {path: path.stat().st_mtime_ns for path in written}


def test_the_correlation_of_difference_and_frequency_is_found(folders, tmp_path):
    found = longtail(**folders, frequencies=FREQUENCIES, out=tmp_path, extractor=patches())
    assert follows_schema(found, tmp_path / "longtail.json")
    assert found["metric"] == "frechet_distance" and found["n_classes"] == 6
    assert found["spearman"] > 0.9 and found["spearman_p_value"] < 0.05
    assert found["pearson_log"] > 0.7 and found["kernel_spearman"] > 0.9
    other = longtail(
        folders["b"],
        folders["a"],
        folders["references"],
        FREQUENCIES,
        tmp_path / "swapped",
        extractor=patches(),
    )
    assert other["spearman"] == pytest.approx(-found["spearman"])
    svg = (tmp_path / "longtail.svg").read_text()
    assert svg.startswith("<svg") and svg.endswith("</svg>") and "Spearman" in svg
    report([], [Evaluation.read(tmp_path, tuple(KINDS))], tmp_path / "report.html")
    section = read((tmp_path / "report.html").read_text()).by_id("longtail")
    assert section.one(cls="plot").one("svg")
    rows = [head.text for head in section.all("th") if head.attributes["scope"] == "row"]
    assert {"spearman", "kernel pearson log", *CLASSES} <= set(rows)
    assert "cat" in table(found) and "spearman of frechet distance" in table(found)


def test_a_class_has_the_distance_of_its_own_images(folders, tmp_path):
    found = longtail(**folders, frequencies=FREQUENCIES, out=tmp_path, extractor=patches())
    extractor = patches()

    def of(paths):
        pixels = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        return Statistics.of(
            extractor.apply(np.stack([extractor.prepare(each) for each in pixels]))["colours"]
        )

    real = of(sorted((tmp_path / folders["references"] / "dog").glob("*.png")))
    a = of([tmp_path / folders["a"] / f"3-{number}.png" for number in range(14)])
    row = next(row for row in found["classes"] if row["class"] == "dog")
    assert row["a"] == pytest.approx(frechet(a, real), rel=1e-4)
    assert row["difference"] == row["a"] - row["b"]
    assert (row["n"], row["n_references"], row["frequency"]) == (14, 14, 1000.0)


def test_classes_without_images_or_frequency_are_skipped(folders, tmp_path):
    frequencies = {name: value for name, value in FREQUENCIES.items() if name != "eel"}
    found = longtail(**folders, frequencies=frequencies, out=tmp_path, extractor=patches())
    assert found["not_computed"] == {"eel": "it has no frequency in the table"}
    assert any("classes that are skipped: 1" in text for text in found["warnings"])
    assert any("as few as 14 images for 48 dimensions" in text for text in found["warnings"])
    with pytest.raises(ValueError, match="found 0 classes.*14 images of a"):
        longtail(
            **folders, frequencies=FREQUENCIES, out=tmp_path, extractor=patches(), min_images=15
        )
    with pytest.raises(ValueError, match="has no classes"):
        longtail(
            folders["a"],
            folders["b"],
            folders["references"] + "/ant",
            FREQUENCIES,
            tmp_path / "out",
            extractor=patches(),
        )


def test_coefficients_equal_scipys_and_small_tests_use_all_permutations():
    rng = np.random.default_rng(0)
    for n in (5, 40):
        x = np.round(rng.normal(size=n), 1)  # with ties
        y = x + rng.normal(size=n)
        assert correlation.pearson(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic)
        assert correlation.spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    x, y = np.array([1.0, 2, 4, 7, 9]), np.array([2.0, 1, 5, 6, 9])
    found = correlation.pearson(x, y)
    every = [np.corrcoef(x, y[list(order)])[0, 1] for order in itertools.permutations(range(5))]
    assert found.p_value == pytest.approx(np.mean(np.abs(every) >= abs(found.value) - 1e-9))


def test_p_values_are_uniform_without_correlation():
    rng = np.random.default_rng(1)
    found = [
        correlation.spearman(rng.normal(size=12), rng.normal(size=12)).p_value for _ in range(60)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    strong = np.arange(12.0)
    assert correlation.spearman(strong, strong**3).p_value < 0.001
    assert np.isnan(correlation.spearman(strong, np.ones(12)).value)
    with pytest.raises(ValueError, match="at least 4 pairs"):
        correlation.pearson(strong[:3], strong[:3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no class"),
        ("class,frequency\n", "holds no class"),
        ("a,1\nb\n", "line 2 has 1 columns"),
        ("a,1\nb,many\n", "line 2: found frequency 'many'"),
        ("a,1\nb,-2\n", "expected 0 or more"),
        ("a,1\nb,nan\n", "expected 0 or more"),
        ("a,1\na,2\n", "'a' appears twice"),
    ],
)
def test_an_invalid_table_is_rejected_with_its_line(tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(TableError, match=re.escape(message)):
        read_frequencies(tmp_path / "table.csv")


def test_a_table_may_have_a_header_and_names_with_commas(tmp_path):
    (tmp_path / "table.csv").write_text('class,results\n"crane, bird",10\n\ncat, 2.5\n')
    assert read_frequencies(tmp_path / "table.csv") == {"crane, bird": 10.0, "cat": 2.5}
    with pytest.raises(TableError, match="there is no file"):
        read_frequencies(tmp_path / "none.csv")
