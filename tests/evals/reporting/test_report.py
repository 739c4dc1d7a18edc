"""evals.report: the page is complete, self-contained, accessible and narrow enough for phones."""

import html.parser
import json
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from evals.report import report
from evals.reporting import page
from evals.reporting.results import Evaluation, ReportError, Run
from evals.sections import KINDS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


class Reader(html.parser.HTMLParser):
    """The elements and texts of a page."""

    VOID = frozenset({"meta", "link", "img", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def every(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a <run> & more"
    (folder / "samples").mkdir(parents=True)
    lines = [
        {
            "step": step,
            "train/loss": 5.0 / step,
            "train/learning_rate": 1e-3,
            "eval/loss": 6.0 / step,
        }
        for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (9, 10):
        Image.new("RGB", (40, 30), (step, 0, 0)).save(folder / "samples" / f"step_{step:08d}.png")
    return Run.read(folder)


@pytest.fixture
def evaluation(tmp_path):
    values = {"frechet_distance": 12.5, "frechet_distance_standard_error": 0.25, "precision": 0.5}
    result = {
        **values,
        "n_generated": 1200,
        "n_references": 90,
        "floor": {"frechet_distance": 3.5},
        "codec": {"requested": 1200, "strictly_valid": 1100, "salvaged": 99, "failed": 1},
        "not_computed": {"kernel_distance": "too few images"},
        "warnings": ["the weights are <not> known"],
    }
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(result))
    return Evaluation.read(folder, tuple(KINDS))


def test_the_page_holds_all_numbers_and_escapes_values(run, evaluation, tmp_path):
    report([run], [evaluation], tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text()
    cells = Reader(text).text["td"]
    assert {"12.5 ± 0.25", "3.5", "0.5", "1,100", "1,200", "1.667"} <= set(cells)
    assert "the weights are &lt;not&gt; known" in text and "too few images" in text
    assert "a &lt;run&gt; &amp; more" in text and "<run>" not in text
    assert "Samples after 10 steps" in text


def test_the_page_is_self_contained_and_links_to_existing_files(run, evaluation, tmp_path):
    out = tmp_path / "report.html"
    report([run], [evaluation], out)
    found = Reader(out.read_text())
    sources = [a["src"] for tag, a in found.elements if "src" in a]
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(
        r"(https?:)?//(?!www\.w3\.org)", re.sub(r"data:[^\"]*", "", out.read_text())
    )
    links = [a["href"] for a in found.every("a") if not a["href"].startswith("#")]
    assert len(links) == 2
    assert all((tmp_path / link).is_file() for link in links)


def test_the_page_has_what_screen_readers_need(run, evaluation, tmp_path):
    report([run, run], [evaluation], tmp_path / "report.html")
    found = Reader((tmp_path / "report.html").read_text())
    assert found.every("html")[0]["lang"] == "en"
    assert all(a["alt"] for a in found.every("img")) and found.every("img")
    assert len(found.every("caption")) == len(found.every("table")) >= 3
    assert all(a["scope"] in ("row", "col") for a in found.every("th"))
    figures = [a for a in found.every("figure") if "role" in a]
    assert any("eval" in a["aria-label"] for a in figures)
    names = [a["id"] for _, a in found.elements if "id" in a]
    assert len([n for n in names if n.startswith("section-")]) == len(found.every("h2"))
    assert len(found.every("h1")) == 1


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_needs_no_horizontal_scrolling(run, evaluation, tmp_path, width):
    out = tmp_path / "report.html"
    report([run], [evaluation], out)
    probe = """<script>addEventListener("load", () => {
      document.documentElement.dataset.seen = JSON.stringify({
        wide: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
        tables: document.querySelectorAll("table").length, rendered:
        [...document.querySelectorAll("figure svg")].every(s => s.clientHeight > 50)
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
    html = page.picture(Image.new("RGB", (4000, 100)), "wide")
    assert 'width="1600"' in html and 'alt="wide"' in html
    (tmp_path / "a.mp4").write_bytes(b"abc")
    assert "data:video/mp4;base64,YWJj" in page.video(tmp_path / "a.mp4", "a clip")
    with pytest.raises(ValueError, match="browsers play"):
        page.video(tmp_path / "a.avi", "a clip")
