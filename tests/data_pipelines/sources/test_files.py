"""Patterns of file names, and files in buckets."""

import contextlib
import gc
import io

import pytest

from data_pipelines.sources import SourceError, files, open_source
from tests.data_pipelines.sources.helpers import keys, make_parquet, make_tar, png, write


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
        ("a-{3..1}", ["a-3", "a-2", "a-1"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, expected):
    assert list(files.expand_braces(pattern)) == expected


def test_a_missing_shard_is_an_error(tmp_path):
    make_tar(tmp_path / "a-000.tar", {"1.png": png()})
    with pytest.raises(SourceError, match=r"a-001.tar' matches no file \(nor do 1 more\)"):
        open_source(f"tar:{tmp_path}/a-{{000..002}}.tar")


def test_a_range_without_bounds_is_refused(tmp_path):
    with pytest.raises(SourceError, match="100,000 files"):
        open_source(f"tar:{tmp_path}/a-{{0..99999999999}}.tar")


def test_folders_in_buckets(bucket):
    write(bucket / "photos/cat/b.png", png(1))
    write(bucket / "photos/ant/a.png", png(2))
    write(bucket / "photos/ant/.x.png")
    source = open_source("folder:gs://bucket/photos")
    assert [(item.key, item.label) for item in source.items()] == [
        ("ant/a.png", 0),
        ("cat/b.png", 1),
    ]
    assert source.read("cat/b.png") == png(1) and source.skipped == {"hidden": 1}
    with pytest.raises(SourceError, match="there is no folder"):
        open_source("folder:gs://bucket/none")


def test_a_bucket_file_from_a_context_manager_stays_open(tmp_path):
    from etils.epath import testing

    class File(io.FileIO):
        """With room for attributes, as TensorFlow's files have."""

    @contextlib.contextmanager
    def opened(original, path, mode):
        with File(write(tmp_path / "a.png", png(7))) as file:
            yield file

    with testing.mock_epath(open=opened):  # as etils does with TensorFlow installed
        file = files.open_binary("gs://bucket/a.png")
        gc.collect()
        assert file.read() == png(7)


def test_tars_and_parquet_in_buckets(bucket):
    make_tar(bucket / "t/a-0.tar", {"1.png": png(1)})
    make_tar(bucket / "t/a-1.tar.gz", {"2.png": png(2)})
    source = open_source("tar:gs://bucket/t/a-{0,1}.tar*")
    assert [source.read(item.locator) for item in source.items()] == [png(1), png(2)]
    assert keys(source) == ["a-0.tar/1.png", "a-1.tar.gz/2.png"]
    make_parquet(bucket / "p/0.parquet", [png(3)])
    source = open_source("parquet:gs://bucket/p/*.parquet")
    assert [source.read(item.locator) for item in source.items()] == [png(3)]
