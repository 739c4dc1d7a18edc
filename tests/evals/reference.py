"""Loads the scripts of the golden files, which are not importable modules."""

import importlib.util
import pathlib
import sys

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "inception"
PARTIAL = (
    pathlib.Path(__file__).parents[3]
    / "shared/weights/inception_2015_12_05_to_mixed_6e.safetensors"
)
PHOTOS = pathlib.Path(__file__).parents[3] / "shared/data/photos"


def golden_module(name, folder=GOLDEN):
    """A script of a folder of golden files as a module."""
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
