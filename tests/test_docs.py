"""The documentation names only what exists: links, files, commands, the layout of the modules."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "data_pipelines", "evals", "jpeglm_jax")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PLACEHOLDERS = ("NAME", "SUBJECT", "DEVICE")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_and_commands_that_are_named_exist(page):
    text = page.read_text()
    folders = "|".join([*PACKAGES, "benchmarks", "docs", "launch", "tests"])
    for name in re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*\w", text):
        if not any(word in name for word in PLACEHOLDERS):
            assert any((ROOT / base / name).exists() for base in ("", "tests")), name
    for module in re.findall(
        r"python -m ((?:data_pipelines|evals|jpeglm_jax|benchmarks)\.\w+)", text
    ):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() or "NAME" in module


def test_the_layout_lists_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.split("## Layout")[1].split("```")[1]
    listed, parents = set(), []
    for line in tree.splitlines():
        if entry := re.match(r"( *)([\w./]+)", line):
            depth = len(entry[1]) // 2
            parents[depth:] = [entry[2].rstrip("/")]
            listed.add("/".join(parents))
    missing = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "kernels"
    } - listed
    assert not missing, f"not in docs/architecture.md: {sorted(missing)}"
    gone = {name for name in listed if not (ROOT / name).exists()}
    assert not gone, f"in docs/architecture.md, but not there: {sorted(gone)}"
