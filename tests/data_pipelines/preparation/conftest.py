"""Folders of images and of shards that the tests of preparation share."""

import shutil

import pytest

from tests.data_pipelines.preparation.helpers import bad_files, jpeg, make_photos, run


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """200 images in two labelled folders; read-only."""
    folder = tmp_path_factory.mktemp("photos")
    return make_photos(folder, 200)


@pytest.fixture
def mixed(tmp_path):
    """21 good images, one with a wrong suffix, and the `bad_files`."""
    folder = make_photos(tmp_path / "mixed", 20)
    for name, data in bad_files().items():
        (folder / "a" / name).write_bytes(data)
    (folder / "a" / "jpeg_inside.png").write_bytes(jpeg(5))  # only its suffix is wrong
    return folder


@pytest.fixture(scope="session")
def prepared(photos, tmp_path_factory):
    """Shards of `photos` with the options of `run`; read-only."""
    return run(photos, tmp_path_factory.mktemp("prepared") / "shards")


@pytest.fixture(scope="session")
def prepared_with_eval(photos, tmp_path_factory):
    """Shards of `photos` with an eval split of 0.2; read-only."""
    return run(photos, tmp_path_factory.mktemp("prepared") / "shards", eval_fraction=0.2)


@pytest.fixture
def out(prepared, tmp_path):
    """A copy of `prepared` to modify."""
    return shutil.copytree(prepared, tmp_path / "out")
