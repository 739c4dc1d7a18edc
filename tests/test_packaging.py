"""What is installed is what is imported, and the commands that are promised are those that run."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "data_pipelines", "evals", "jpeglm_jax")
# Extras whose packages are imported only when asked for, with a message that names the extra.
OPTIONAL = {"beam", "fast", "parity", "tokamax"}


def setup_constant(name: str):
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def distributions(requirements: list[str]) -> set[str]:
    return {canonical(Requirement(text).name) for text in requirements}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def imported_modules() -> set[str]:
    """Top-level names of all that the packages import, but themselves and the standard library."""
    names = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def test_all_that_is_imported_is_required():
    known = metadata.packages_distributions()
    extras = setup_constant("EXTRAS_REQUIRE")
    optional = distributions([text for extra in OPTIONAL for text in extras[extra]])
    declared = distributions(setup_constant("INSTALL_REQUIRES")) | optional
    undeclared = {
        name
        for name in imported_modules()
        if not declared & {canonical(name), *map(canonical, known.get(name, []))}
    }
    assert not undeclared, f"imported but not in setup.py: {sorted(undeclared)}"


def test_all_that_is_required_is_imported():
    known = metadata.packages_distributions()
    imported = {canonical(dist) for name in imported_modules() for dist in known.get(name, [name])}
    through_others = {"importlib-resources"}  # see setup.py
    unused = distributions(setup_constant("INSTALL_REQUIRES")) - imported - through_others
    assert not unused, f"in setup.py but imported nowhere: {sorted(unused)}"


def test_what_is_built_holds_every_file_of_the_packages(tmp_path):
    """Templates and other data are package data; setuptools omits what setup.py does not name."""
    subprocess.run(
        [
            *(sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}"),
            *("build_py", f"--build-lib={tmp_path / 'built'}"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for package in PACKAGES:
        files = [
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        missing = [
            path for path in files if not (tmp_path / "built" / path.relative_to(ROOT)).exists()
        ]
        assert not missing, f"not in the package: {missing}"


def test_ci_runs_the_test_command_of_the_readme():
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "&& pytest" in line
    ]
    assert len(commands) == 1
    assert commands[0] in (ROOT / "README.md").read_text().splitlines()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_code_is_a_package(package):
    """`find_packages` leaves out a folder without `__init__.py`, silently."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
