"""Imports point one way: from commands down to what knows nothing of the project."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("configs", "data_pipelines", "jpeglm_jax", "evals")

# Each may import from what is listed before it, and from itself. What shares a line is imported
# from either way, but without a circle between modules.
FLOORS = [
    {"configs"},
    {"data_pipelines.utils"},
    {"data_pipelines.media"},
    {"data_pipelines.sources", "data_pipelines.representations"},
    {"data_pipelines.shards"},
    {"data_pipelines.packing"},
    {"data_pipelines.loading"},
    {"data_pipelines.preparation"},
    {"data_pipelines"},
    {"jpeglm_jax.hardware"},
    {"jpeglm_jax.parallel"},
    {"jpeglm_jax.model"},
    {"jpeglm_jax.generation", "jpeglm_jax.supervision", "jpeglm_jax.huggingface"},
    {"jpeglm_jax.training"},
    {"jpeglm_jax.tokenizer"},
    {"jpeglm_jax.compilation"},
    {"jpeglm_jax"},
    {"evals.inputs", "evals.features", "evals.distances", "evals.reporting", "evals.codelength"},
    {"evals"},
]
# Modules at one level, beside commands and __init__.py.
MAX_MODULES = 14


def modules() -> dict[str, Path]:
    found = {}
    for top in TOP:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(*, lazy: bool) -> dict[str, set[str]]:
    """Module -> modules of the project that it imports, those inside functions too if `lazy`."""
    known = modules()
    result: dict[str, set[str]] = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree)) if lazy else list(tree.body)
        wanted: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    wanted.add(full if full in known else node.module)
        result[name] = (wanted & known.keys()) - {name}
    return result


def floor(module: str) -> int:
    while module:
        for number, names in enumerate(FLOORS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    raise AssertionError("a package without a floor")


def test_no_import_points_upward():
    upward = [
        f"{name} imports {other}"
        for name, others in imports(lazy=True).items()
        for other in others
        if floor(other) > floor(name)
    ]
    assert not upward


def test_no_circle_of_imports():
    graphlib.TopologicalSorter(imports(lazy=False)).prepare()


@pytest.mark.parametrize("top", TOP)
def test_a_folder_is_seen_at_a_glance(top):
    crowded = {}
    for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
        own = [
            path.name
            for path in folder.glob("*.py")
            if path.name != "__init__.py" and "__main__" not in path.read_text()
        ]
        if len(own) > MAX_MODULES:
            crowded[folder.relative_to(ROOT)] = own
    assert not crowded


def test_no_private_name_of_another_module_is_used():
    private = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        bound = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in modules()
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TOP:
                private += [f"{name}: {a.name}" for a in node.names if a.name.startswith("_")]
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in bound
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                private.append(f"{name}: {node.value.id}.{node.attr}")
    assert not private
