"""What is missing is named; an error of the plugin's own code is not taken for that."""

import pytest

from data_pipelines import representations
from data_pipelines.utils.plugins import load_object
from evals.features import extractors, video_features

PLUGIN = """
missing = None
def make():
    return missing.extractor
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "one_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("import math\nmath.no_such_function()\n")
    (tmp_path / "needing_plugin.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_an_object_is_loaded_by_name(plugin):
    assert load_object("one_plugin:make", "features").__name__ == "make"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_plugin:make", "No module named 'no_plugin'"),
        ("one_plugin:other", "one_plugin has no 'other'"),
        ("needing_plugin:make", "no_such_package"),
    ],
)
def test_what_is_missing_is_named(plugin, name, message):
    with pytest.raises(ValueError, match=message):
        extractors.make(name)
    with pytest.raises(ValueError, match=message):
        video_features.make(name)
    with pytest.raises(ValueError, match=message):
        representations.make(name)


def test_an_attribute_error_of_the_plugin_is_its_own(plugin):
    for make in (extractors.make, video_features.make):
        with pytest.raises(AttributeError, match="extractor"):
            make("one_plugin:make")
    with pytest.raises(AttributeError, match="no_such_function"):
        representations.make("broken_plugin:Representation")
