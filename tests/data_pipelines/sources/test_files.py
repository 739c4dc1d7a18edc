"""Patterns of file names, and files in buckets."""

import contextlib
import gc
import io

import pytest
from etils.epath import testing

from data_pipelines.sources import SourceError, files, open_source
from data_pipelines.utils.files import StorageUnavailable
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


@pytest.mark.parametrize("kind, suffix", [("tar", ".tar"), ("parquet", ".parquet")])
def test_a_folder_where_files_are_meant(tmp_path, kind, suffix):
    with pytest.raises(SourceError, match=f"as in '{kind}:{tmp_path}/\\*{suffix}'"):
        open_source(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_that_is_gone_since_the_listing_is_an_outage(tmp_path, kind):
    for name in ("a", "b"):
        if kind == "tar":
            make_tar(tmp_path / f"{name}.tar", {"1.png": png()})
        else:
            make_parquet(tmp_path / f"{name}.parquet", [png()])
    source = open_source(f"{kind}:{tmp_path}/*.{kind}")
    items = list(source.items())
    (tmp_path / f"b.{kind}").unlink()
    again = open_source(source.spec)  # by a process that resumes
    for opened in (open_source(f"{kind}:{tmp_path}/*.{kind}"), again):
        with pytest.raises(StorageUnavailable, match=f"b.{kind}"):
            opened.read(items[1].locator)
        assert opened.read(items[0].locator) == png()


@pytest.mark.parametrize("scheme", ["https", "hdfs", "file", "ftp"])
@pytest.mark.parametrize("source", ["", "folder:", "tar:", "parquet:"])
def test_an_unknown_scheme_is_refused_with_what_is_known(source, scheme):
    with pytest.raises(SourceError, match=f"{scheme}://, expected a local path, gs:// or s3://"):
        open_source(f"{source}{scheme}://host/a.tar")


class Refused(Exception):
    """As drivers of object stores raise."""


def test_a_bucket_that_does_not_answer_is_an_outage(bucket):
    write(bucket / "photos/cat/b.png")
    source = open_source("folder:gs://bucket/photos")
    assert keys(source) == ["cat/b.png"]
    (bucket / "photos/cat/b.png").unlink()
    with pytest.raises(SourceError, match="No such file"):
        source.read("cat/b.png")
    (bucket / "photos/cat").rmdir()
    (bucket / "photos").rmdir()
    with pytest.raises(StorageUnavailable, match="there is no folder"):
        source.read("cat/b.png")

    def refuse(*arguments, **options):
        raise Refused("token expired")

    with testing.mock_epath(open=refuse, walk=refuse):
        with pytest.raises(StorageUnavailable, match="token expired.*same command resumes"):
            source.read("cat/b.png")
        with pytest.raises(StorageUnavailable, match="token expired"):
            keys(source)


def test_objects_without_a_path_are_rejected_and_other_names_are_read(bucket, monkeypatch):
    write(bucket / "photos/cat/back\\slash.png", png(3))
    source = open_source("folder:gs://bucket/photos")
    listed = files.listed_names

    def with_nameless(folder):
        folders, names = listed(folder)
        return folders, names + [""] * folder.rstrip("/").endswith("cat")

    class Bucket:
        def find(self, root):
            assert root == "bucket/photos/cat"
            return [f"{root}//a.png", f"{root}//b.txt", f"{root}/back\\slash.png"]

    monkeypatch.setattr(files, "listed_names", with_nameless)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Bucket(), url[5:]))
    items = list(source.items())
    assert [source.read(item.locator) for item in items] == [png(3)]
    assert [reject.key for reject in source.rejects] == ["cat//a.png"]
    assert source.skipped == {".txt": 1}
