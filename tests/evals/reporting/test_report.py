"""evals.report: the page is complete, self-contained, accessible and narrow enough for phones."""

import itertools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from evals import gallery
from evals.evaluation import evaluate
from evals.report import report
from evals.reporting import comparison, page
from evals.reporting.results import Evaluation, ReportError, Run, make_result
from evals.sections.kinds import KINDS
from evals.sections.runs import facts
from tests.evals.reporting.reader import read

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
HOSTILE = 'a <script>alert("1")</script> & more'


def write_run(folder, scale=1.0, **config):
    (folder / "samples").mkdir(parents=True)
    lines = [
        {"step": step, "train/loss": scale / step, "train/grad_norm": 1.0, "eval/loss": 2.0 / step}
        for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "preset": "digits",
        "steps": 3,
        "representation": {"name": "jpeg", "size": 16},
        "sample": {"prefix_ratio": 0.0},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for step in (9, 10):
        Image.new("RGB", (40, 30), (step, 0, 0)).save(folder / "samples" / f"step_{step:08d}.png")
    return Run.read(folder)


def result(kind, settings, figures, **members):
    command = f"python -m evals.{kind} --out='{HOSTILE}'"
    return make_result(kind, command, settings, figures, versions={"jax": "0.10"}, **members)


def write_evaluation(folder, distance=12.5, pictures=True, continuation=False, **settings):
    settings = {"network": "digits", "dimensions": 64, "temperature": 1.0, **settings}
    metrics = result(
        "metrics",
        settings,
        {
            "frechet_distance": distance,
            "frechet_distance_standard_error": 0.2534,
            "precision": 0.5,
            "n_generated": 1200,
            "n_references": 90,
            "floor": {"frechet_distance": 3.5},
            "codec": {"requested": 1200, "strictly_valid": 1100, "salvaged": 99, "failed": 1},
        },
        warnings=["the weights are <not> known"],
        not_computed={"kernel_distance": "too <few> images"},
    )
    likelihood = result(
        "likelihood",
        {"label": "given", "images_are": "eval split"},
        {"bits_per_image": 50.0, "bits_per_image_standard_error": 1.0, "n_images": 30},
    )
    (folder / gallery.FOLDER).mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "likelihood.json").write_text(json.dumps(likelihood))
    if pictures:
        write_gallery(folder / gallery.FOLDER, continuation)
    return Evaluation.read(folder, tuple(KINDS))


def write_gallery(folder, continuation):
    samples = []
    for number in range(6):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"sample-{number}.png")
        sample = {"key": f"{number} {HOSTILE}", "label": None, "file": f"sample-{number}.png"}
        samples.append({**sample, "valid": number % 3 > 0, "continuation": continuation})
    for sample in samples[:2]:
        near = {"key": "real", "distance": 0.5, "file": "sample-5.png"}
        sample["nearest"] = [near, {**near, "key": "moved", "file": None}]
        sample["nearest_to_each_other"] = 0.25
    pictured = {"seed": 0, "n": 1200, "samples": samples, "authenticity": 0.5}
    pictured |= {"references": HOSTILE, "n_references": 90, "features": "digits"}
    (folder / gallery.INDEX).write_text(json.dumps(pictured))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "a <run> & more")


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path / "evaluation")


def written(runs, evaluations, tmp_path):
    out = tmp_path / "out" / "report.html"
    report(runs, evaluations, out)
    return read(out.read_text())


def test_the_main_figures_are_on_top_with_their_errors_and_floors(run, evaluation, tmp_path):
    found = written([run], [evaluation], tmp_path)
    cards = found.by_id("summary").all("li", "card")
    values = [(card.one(cls="value").text, card) for card in cards]
    assert [value for value, _ in values] == ["12.50 ± 0.25", "91.67 ± 0.80 %", "50.0 ± 1.0"]
    assert "3.5" in values[0][1].text and "1,200" in values[0][1].text
    ids = {element.attributes.get("id") for element in found.all("section")}
    links = [card.one("a").attributes["href"].removeprefix("#") for card in cards]
    assert set(links) <= ids


def test_every_figure_has_its_command_and_settings(run, evaluation, tmp_path):
    found = written([run], [evaluation], tmp_path)
    figures = found.one("main").all("figure")
    assert len(figures) == 4
    for figure in figures:
        sources = figure.all(cls="source")
        assert sources
        for source in sources:
            assert source.one("pre", "command").text.startswith("python -m ")
            assert source.one("details", "settings").all("dt")
    commands = [element.text for element in found.all("pre", "command")]
    assert f"python -m evals.metrics --out='{HOSTILE}'" in commands
    training = next(text for text in commands if "jpeglm_jax.train" in text)
    assert "--config=configs/jpeg.py:digits" in training and "--config.steps=3" in training
    assert any("python -m evals.report" in text and "--evaluations=" in text for text in commands)


def test_tables_hold_all_figures(run, evaluation, tmp_path):
    found = written([run], [evaluation], tmp_path)
    cells = {element.text for element in found.all("td")}
    assert {"12.50 ± 0.25", "3.5", "0.5", "1,100 (91.7 %)", "1,200", "50.0 ± 1.0"} <= cells
    metrics = found.by_id("metrics")
    assert metrics.one(cls="warnings").text == "the weights are <not> known"
    assert "too <few> images" in metrics.one(cls="missing").text


def test_statistics_of_other_tools_are_shown(tmp_path):
    """Only two moments: no number of images, no error, no network, no documents."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        mean, root = generator.normal(size=3), generator.normal(size=(3, 3))
        np.savez(tmp_path / f"{name}.npz", mu=mean, sigma=root @ root.T)
    evaluate(str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), tmp_path / "evaluation")
    evaluation = Evaluation.read(tmp_path / "evaluation", tuple(KINDS))
    found = written([], [evaluation], tmp_path)
    card = found.by_id("summary").one("li", "card")
    assert card.one(cls="value").text and not card.all(cls="error")
    assert not [each for each in found.all("section") if each.attributes["id"] == "samples"]


@pytest.mark.parametrize(("count", "folded"), [(3, False), (40, True)])
def test_every_class_has_a_row_the_worst_first(tmp_path, count, folded):
    rows = [
        {"label": n, "class": f"<class {n}>", "n": 20, "n_references": 30, "fid": 1.0 + n}
        | {"fid_standard_error": 0.1, "valid": None, "precision": 0.5}
        for n in range(count)
    ]
    figures = {"metric": "fid", "n_classes": count, "classes": rows}
    (tmp_path / "a").mkdir()
    found = result("classes", {"n_generated": 60, "n_references": 90}, figures)
    (tmp_path / "a" / "classes.json").write_text(json.dumps(found))
    evaluation = Evaluation.read(tmp_path / "a", tuple(KINDS))
    section = written([], [evaluation], tmp_path).by_id("classes")
    names = [head.text for head in section.all("th") if head.attributes["scope"] == "row"]
    assert names == [f"<class {n}>" for n in reversed(range(count))]
    assert f"{count}.00 ± 0.10" in section.all("td", "bar")[0].text
    assert bool(section.all("details", "folded")) == folded


def test_names_are_text_and_never_markup(run, tmp_path):
    evaluation = write_evaluation(tmp_path / HOSTILE.replace("/", "|"), network=HOSTILE)
    out = tmp_path / "report.html"
    report([run], [evaluation], out)
    text = out.read_text()
    assert "<script" not in text and "<run>" not in text
    assert "a &lt;run&gt; &amp; more" in text and "a &lt;script&gt;" in text
    found = read(text)
    assert not found.all("script") and not found.all("run")
    assert all(not name.startswith("on") for each in found.all() for name in each.attributes)


def test_the_page_is_one_file_without_scripts(run, evaluation, tmp_path):
    out = tmp_path / "report.html"
    report([run], [evaluation], out)
    found = read(out.read_text())
    sources = [each.attributes["src"] for each in found.all() if "src" in each.attributes]
    assert sources and all(source.startswith("data:") for source in sources)
    links = [each.attributes["href"] for each in found.all() if "href" in each.attributes]
    assert all(link.startswith(("#", "data:")) for link in links)
    rest = re.sub(r'data:[^"]*', "", out.read_text())
    assert not re.search(r"(https?:)?//(?!www\.w3\.org)|url\((?!#)|@import", rest)
    ids = [each.attributes["id"] for each in found.all() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_samples_are_those_of_the_evaluation_with_invalid_ones_marked(evaluation, tmp_path):
    samples = written([], [evaluation], tmp_path).by_id("samples")
    tiles = samples.one("ul", "tiles").all("li")
    assert len(tiles) == 6
    marked = [tile for tile in tiles if "marked" in tile.classes]
    assert [tiles.index(tile) for tile in marked] == [0, 3]
    for tile in tiles:
        assert ("invalid" in tile.one("img").attributes["alt"]) == (tile in marked)
    files = [f"sample-{number}.png" for number in range(6)]
    expected = [page.tile_source(evaluation.folder / gallery.FOLDER / name) for name in files]
    assert [tile.one("img").attributes["src"] for tile in tiles] == expected
    assert "6 of 1,200" in samples.text and "seed 0" in samples.text


def test_neighbours_have_their_distances(evaluation, tmp_path):
    samples = written([], [evaluation], tmp_path).by_id("samples")
    probes = samples.one("ul", "probes").all("li", "probe")
    assert len(probes) == 2
    for probe in probes:
        first, *nearest = probe.one("ol").all("li")
        assert "sample" in first.classes
        assert [each.one(cls="under").text for each in nearest] == ["0.5", "0.5"]
        assert nearest[0].one("img") and nearest[1].one(cls="absent")
        assert "0.25" in probe.text
    assert "50.0 %" in samples.text


def test_continuations_are_not_called_samples(tmp_path):
    evaluation = write_evaluation(tmp_path / "a", continuation=True, documents="continuations")
    run = write_run(tmp_path / "run", sample={"prefix_ratio": 0.5})
    found = written([run], [evaluation], tmp_path)
    titles = [figure.attributes["aria-label"] for figure in found.all("figure")]
    assert not any(title.startswith("Samples") for title in titles)
    assert sum(title.startswith("Continuations") for title in titles) == 1
    captions = [each.text for each in found.by_id("training").all(cls="caption")]
    assert [caption.startswith("Continuations of 0.5") for caption in captions] == [True]
    alts = [image.attributes["alt"] for image in found.by_id("samples").all("img")]
    assert not any("Sample" in alt for alt in alts)
    assert "1,200 continuations" in found.by_id("summary").text


def test_evaluations_of_equal_settings_are_compared_best_first(tmp_path):
    evaluations = [
        write_evaluation(tmp_path / name, distance)
        for name, distance in (("a", 12.5), ("b", 9.5), ("c", 20.5))
    ]
    found = written([], evaluations, tmp_path)
    card = found.by_id("summary").all("li", "card")[0]
    entries = card.all(cls="entry")
    assert [entry.one(cls="name").text for entry in entries] == ["b", "a", "c"]
    assert ["best" in entry.classes for entry in entries] == [True, False, False]
    assert not found.all(cls="differs") and not found.by_id("metrics").all("small")
    assert len(found.by_id("metrics").all(cls="source")) == 3


def test_different_settings_are_marked_in_words(tmp_path):
    evaluations = [
        write_evaluation(tmp_path / name, distance, temperature=temperature, step=step)
        for name, distance, temperature, step in (("a", 12.5, 1.0, 5), ("b", 9.5, 0.7, 6))
    ]
    found = written([], evaluations, tmp_path)
    card = found.by_id("summary").all("li", "card")[0]
    assert [each.one(cls="name").text for each in card.all(cls="entry")] == ["a", "b"]
    assert not card.all(cls="best") and card.all("p", "differs")
    for entry, value in zip(
        card.all(cls="entry"), ("temperature 1", "temperature 0.7"), strict=True
    ):
        assert entry.one(cls="differs").text == value  # the step is what is compared
    heads = found.by_id("metrics").all("table")[0].all("th")
    columns = [head for head in heads if head.attributes["scope"] == "col"]
    notes = [small.text for head in columns for small in head.all("small")]
    assert [head.text.split()[0] for head in columns] == ["a", "b", "codec"]
    assert notes == ["temperature 1", "temperature 0.7"]  # and one floor for both
    assert not found.by_id("likelihood").all("small")


def test_splits_of_the_same_documents_are_no_difference(tmp_path):
    names, documents = ("a", "b"), [{"key": "x", "label": 1, "bytes": 5}]
    evaluations = [write_evaluation(tmp_path / name) for name in names]
    for one in evaluations:
        one.results["likelihood"]["settings"]["images"] = f"shards:{one.name}:eval"
    assert all(comparison.differences(evaluations, "likelihood"))
    for one in evaluations:
        text = "".join(json.dumps(each) + "\n" for each in documents)
        (one.folder / "likelihood.jsonl").write_text(text)
    assert comparison.differences(evaluations, "likelihood") == ["", ""]
    (tmp_path / "b" / "likelihood.jsonl").write_text(text.replace("x", "y"))
    assert all(comparison.differences(evaluations, "likelihood"))


def test_folders_of_one_name_are_told_apart(tmp_path):
    evaluations = [write_evaluation(tmp_path / name / "evaluation") for name in ("x", "y")]
    found = written([], evaluations, tmp_path)
    names = {name.text for name in found.by_id("summary").all(cls="name")}
    assert names == {"x/evaluation", "y/evaluation"}


def test_followed_checkpoints_are_drawn_with_the_floor(run, tmp_path):
    for step in (1, 2, 3):
        folder = run.folder / "evaluations" / f"step_{step:08d}"
        write_evaluation(folder, 10.0 / step, pictures=False)
    lines = [
        {
            "step": step,
            "frechet_distance": 10.0 / step,
            "frechet_distance_standard_error": 0.1,
            "samples/valid": step / 4,
            "bits_per_image": 50.0 / step,
        }
        for step in (1, 2, 3)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "evaluations" / "metrics.jsonl").write_text(text)
    settings = {"references": "digits", "num": 5, "num_eval": 0, "seed": 0, "features": "f"}
    (run.folder / "evaluations" / "settings.json").write_text(json.dumps(settings))
    section = written([run], [], tmp_path).by_id("checkpoints")
    plots = section.all(cls="plot")
    descriptions = [plot.attributes["aria-label"] for plot in plots]
    assert len(plots) == 3 and all(plot.one("svg") for plot in plots)
    for text, values in zip(descriptions, (("3.333", "3.5"), ("0.75",), ("16.67",)), strict=True):
        assert all(value in text for value in values)
    command = section.one("pre", "command").text
    assert command.startswith("python -m evals.follow ") and "--num=5" in command


def test_the_page_has_what_screen_readers_need(run, evaluation, tmp_path):
    found = written([run, run], [evaluation], tmp_path)
    assert found.one("html").attributes["lang"] == "en"
    images = found.all("img")
    assert images and all(image.attributes["alt"] for image in images)
    tables = found.all("table")
    assert len(tables) >= 3 and all(table.one("caption").text for table in tables)
    assert all(head.attributes["scope"] in ("row", "col") for head in found.all("th"))
    plots = found.all(cls="plot")
    assert plots and all(plot.attributes["role"] == "img" for plot in plots)
    assert any("eval" in plot.attributes["aria-label"] for plot in plots)
    assert len(found.all("h1")) == 1
    levels = [int(each.tag[1]) for each in found.all() if re.fullmatch("h[1-6]", each.tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_plots_and_text_follow_the_colour_scheme(run, evaluation, tmp_path):
    found = written([run], [evaluation], tmp_path)
    svg = found.all(cls="plot")[0].one("svg")
    styles = " ".join(each.attributes.get("style", "") for each in svg.all())
    assert "var(--c0)" in styles and not re.search(r"#[0-9a-f]{6}", styles)
    style = found.one("style").text
    assert "prefers-color-scheme: dark" in style and "@media print" in style
    light, dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part))
        for part in re.split(r"@media screen and \(prefers-color-scheme: dark\)", style)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in ("ink", "muted", "accent", "warn", "bad"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours["warn"], colours["warn-soft"]) >= 4.5
        assert contrast(colours["ink"], colours["bar"]) >= 4.5
        for number in range(7):
            assert contrast(colours[f"c{number}"], colours["paper"]) >= 3, number


def contrast(a, b):
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((luminance(a), luminance(b)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [360, 1600])
def test_a_browser_needs_no_horizontal_scrolling(run, evaluation, tmp_path, width):
    out = tmp_path / "report.html"
    report([run], [evaluation], out)
    probe = """<script>addEventListener("load", () => {
      document.documentElement.dataset.seen = JSON.stringify({
        wide: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
        tables: document.querySelectorAll("table").length, rendered:
        [...document.querySelectorAll(".plot svg")].every(s => s.clientHeight > 50)
      })})</script></html>"""
    # A window cannot be as narrow as a phone: the page is loaded in a frame of that width.
    framed = tmp_path / "page.html"
    framed.write_text(out.read_text().replace("</html>", probe))
    outer = f"""<!doctype html><iframe width="{width}" height="900" src="page.html"
      onload="document.title = this.contentDocument.documentElement.dataset.seen"></iframe>"""
    (tmp_path / "frame.html").write_text(outer)
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--allow-file-access-from-files"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"),
            *("--dump-dom", (tmp_path / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    title = re.search("<title>(.*?)</title>", shown)
    assert title, shown[:2000]
    seen = json.loads(title[1].replace("&quot;", '"'))
    assert seen["wide"] <= seen["window"] <= width
    assert seen["window"] > width - 20, "the frame is wider than its scroll bar takes"
    assert seen["tables"] >= 3 and seen["rendered"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "expected one of metrics.json"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json is not JSON"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "holds a list"),
    ],
)
def test_a_folder_without_results_is_rejected(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(ReportError, match=message):
        Evaluation.read(tmp_path, tuple(KINDS))


def test_a_folder_without_a_run_gives_one_message(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "evals.report",
            f"--workdirs={tmp_path}",
            f"--out={tmp_path}/a.html",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "workdir of a training run" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_result_cannot_name_a_file_outside_its_folder(evaluation):
    assert evaluation.file("grid.png").name == "grid.png"
    for name in ("../secret.png", "/etc/passwd"):
        with pytest.raises(ReportError, match="outside the folder"):
            evaluation.file(name)


def test_a_large_picture_is_reduced_and_a_video_is_embedded(tmp_path):
    picture = page.picture(Image.new("RGB", (4000, 100)), "wide")
    assert (picture.width, picture.alt) == (1600, "wide")
    (tmp_path / "a.mp4").write_bytes(b"abc")
    assert page.clip(tmp_path / "a.mp4", "a clip").src == "data:video/mp4;base64,YWJj"
    with pytest.raises(ValueError, match="browsers play"):
        page.clip(tmp_path / "a.avi", "a clip")


def test_a_run_is_named_by_the_tokenizer_that_it_has(tmp_path):
    """The configuration states what preparation began with: bytes, from which it trained others."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    config = {"representation": {"name": "jpeg", "size": 16, "tokenizer": "bytes"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "tokenizer bytes" in facts(Run.read(tmp_path))
    made = {"name": "jpeg", "size": 16, "tokenizer": {"kind": "codewords", "num_labels": 10}}
    (tmp_path / "representation.json").write_text(json.dumps(made))
    assert "tokenizer codewords" in facts(Run.read(tmp_path))
