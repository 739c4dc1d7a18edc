"""Sources: what they list, what they read, and what becomes of everything bad in them."""

from __future__ import annotations

import bz2
import contextlib
import gc
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import SourceError, base, files, open_source, table, walk
from data_pipelines.sources import tfds as tfds_source

CIFAR10 = Path(__file__).parents[4] / "shared/data/cifar10/cifar10-test.tar.xz"


def png(grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)
    return path


def keys(source) -> list[str]:
    return [item.key for item in source.items()]


def reasons(source) -> dict[str, str]:
    return {reject.key: reject.reason for reject in source.rejects}


class PatchedOs:
    """The module `os` with some functions replaced, for one module under test alone."""

    def __init__(self, **functions) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(os, name)


def assert_reads_in_a_fresh_process(source) -> None:
    """Every item, by a locator that went through JSON, where only the spec is known."""
    expected = {item.key: source.read(item.locator).hex() for item in source.items()}
    listing = json.dumps([item.locator for item in source.items()])
    code = (
        "import json, sys\n"
        "from data_pipelines.sources import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "print(json.dumps([source.read(l).hex() for l in reversed(json.load(sys.stdin))]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, source.spec],
        input=listing,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert json.loads(result.stdout)[::-1] == list(expected.values())


# Specs


@pytest.mark.parametrize(
    "spec, nearest",
    [
        ("digit", "'digits'"),
        ("foldr:/data", "'folder:/data'"),
        ("tars:a.tar", "'tar:a.tar'"),
        ("parket:x", "'parquet:x'"),
        ("http://example.org/x.tar", "'tar:http://example.org/x.tar'"),
        ("imagenet", "'digits'"),
        ("a/train-000.tar", "'tar:a/train-000.tar'"),
        ("a/0.parquet", "'parquet:a/0.parquet'"),
    ],
)
def test_unknown_source_names_the_known_and_the_nearest(spec, nearest):
    with pytest.raises(SourceError) as error:
        open_source(spec)
    assert f"did you mean {nearest}?" in str(error.value)
    assert "digits, moving_digits[:CLIPS], folder:PATH, tar:GLOB, tfds:NAME" in str(error.value)


def test_a_bare_path_is_told_how_it_is_spelled(tmp_path):
    with pytest.raises(SourceError, match=f"did you mean 'folder:{tmp_path}'"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "spec", ["digits:3", "folder:", "tar:", "tfds:", "parquet:", "tfds:a:b:c", "tfds::train"]
)
def test_a_wrong_argument_is_one_sentence(spec):
    with pytest.raises(SourceError) as error:
        open_source(spec)
    assert "\n" not in str(error.value)


# Digits


def test_digits_are_the_whole_set_with_labels():
    from sklearn.datasets import load_digits

    source = open_source("digits")
    items = list(source.items())
    assert source.label_names == tuple("0123456789")
    assert items[0].key == "digits/0000" and len(items) == len({i.key for i in items}) == 1797
    data = load_digits()
    assert [item.label for item in items] == data.target.tolist()
    image = np.asarray(Image.open(io.BytesIO(source.read(items[1234].locator))))
    assert image.shape == (8, 8) and image.dtype == np.uint8
    np.testing.assert_allclose(image, data.images[1234] * 255 / 16, atol=0.5)


@pytest.mark.parametrize("locator", [-1, 1797, "0", None])
def test_digits_refuse_a_wrong_locator(locator):
    with pytest.raises(SourceError, match="0 to 1796"):
        open_source("digits").read(locator)


# Folders


def test_folder_of_classes_is_labelled_and_ordered(tmp_path):
    for name in ("cat/b.png", "cat/a.JPG", "cat/deep/er/x.webp", "ant/1.gif", "ant.d/0.bmp"):
        write(tmp_path / name)
    write(tmp_path / "notes/readme.txt")
    source = open_source(f"folder:{tmp_path}")
    assert source.label_names == ("ant", "ant.d", "cat")
    assert [(item.key, item.label) for item in source.items()] == [
        ("ant.d/0.bmp", 1),
        ("ant/1.gif", 0),
        ("cat/a.JPG", 2),
        ("cat/b.png", 2),
        ("cat/deep/er/x.webp", 2),
    ]
    assert keys(source) == sorted(keys(source))
    assert source.skipped == {".txt": 1} and source.rejects == []


def test_an_image_beside_the_classes_means_no_classes(tmp_path):
    write(tmp_path / "cat/a.png")
    write(tmp_path / "b.png")
    source = open_source(f"folder:{tmp_path}")
    assert source.label_names == ()
    assert [(item.key, item.label) for item in source.items()] == [("b.png", -1), ("cat/a.png", -1)]


def test_folder_without_an_image_says_so_in_one_sentence(tmp_path):
    write(tmp_path / "a/readme.txt")
    write(tmp_path / ".hidden.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(SourceError) as error:
        open_source(f"folder:{tmp_path}")
    assert str(error.value) == f"folder:{tmp_path} holds no image (found: 1 hidden, 1 .txt)"


def test_folder_that_is_missing_or_a_file(tmp_path):
    with pytest.raises(SourceError, match="there is no folder"):
        open_source(f"folder:{tmp_path}/none")
    with pytest.raises(SourceError, match="is a file, expected a folder"):
        open_source(f"folder:{write(tmp_path / 'a.png')}")


def test_hidden_entries_are_skipped_and_counted(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "._a.png")
    write(tmp_path / ".thumbnails/a.png")
    source = open_source(f"folder:{tmp_path}")
    assert keys(source) == ["a.png"] and source.skipped == {"hidden": 2}


@pytest.mark.timeout(20)
def test_symbolic_links_are_followed_once_and_loops_are_named(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root / "a/1.png")
    write(outside / "deep/2.png")
    (root / "a/back").symlink_to(root)
    (root / "a/self").symlink_to("self")
    (root / "b").symlink_to(root / "a")
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "file.png").symlink_to(root / "a/1.png")
    (root / "out").symlink_to(outside)
    (root / "out2").symlink_to(outside / "deep")
    (outside / "deep/up").symlink_to(outside)
    source = open_source(f"folder:{root}")
    assert keys(source) == ["a/1.png", "file.png", "out/deep/2.png"]
    named = reasons(source)
    assert "loop" in named["a/back"]
    assert "Too many levels" in named["a/self"]
    assert named["b"] == "a symbolic link to a, which is listed itself"
    assert "leads nowhere" in named["broken.png"]
    assert "listed already" in named["out/deep/up/"] and "listed already" in named["out2/"]
    assert len(named) == 6


def test_a_link_into_a_hidden_store_is_followed(tmp_path):
    write(tmp_path / ".store/1.png")
    (tmp_path / "cat").symlink_to(".store")
    assert keys(open_source(f"folder:{tmp_path}")) == ["cat/1.png"]


@pytest.mark.timeout(20)
def test_a_pipe_is_named_and_never_waited_for(tmp_path):
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(f"folder:{tmp_path}")
    assert keys(source) == ["a.png"]
    assert "pipe" in reasons(source)["pipe.png"]
    with pytest.raises(SourceError, match="not a regular file"):
        source.read("pipe.png")  # What was a file when it was listed may be one now.


def test_an_unreadable_folder_is_named_and_the_rest_is_listed(tmp_path, monkeypatch):
    write(tmp_path / "closed/a.png")
    write(tmp_path / "open/b.png")
    source = open_source(f"folder:{tmp_path}")

    def guarded(path):
        if path.rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return os.scandir(path)

    # Permissions themselves do not bind root.
    monkeypatch.setattr(walk, "os", PatchedOs(scandir=guarded))
    assert keys(source) == ["open/b.png"]
    assert reasons(source) == {"closed/": "folder cannot be read: Permission denied"}


def test_an_unreadable_or_vanished_file_is_named_when_read(tmp_path, monkeypatch):
    gone, closed = write(tmp_path / "gone.png"), write(tmp_path / "closed.png")
    source = open_source(f"folder:{tmp_path}")
    assert keys(source) == ["closed.png", "gone.png"]
    gone.unlink()
    with pytest.raises(SourceError, match="'gone.png' cannot be read: No such file"):
        source.read("gone.png")

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(files, "os", PatchedOs(open=refuse))
    with pytest.raises(SourceError, match="'closed.png' cannot be read: Permission denied"):
        source.read("closed.png")
    assert closed.exists()


def test_a_file_larger_than_any_image_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.png", bytes(2**20 + 1))
    monkeypatch.setattr(files, "MAX_MEDIUM_BYTES", 2**20)
    with pytest.raises(SourceError, match="larger than 1 MiB"):
        open_source(f"folder:{tmp_path}").read("a.png")


@pytest.mark.parametrize(
    "locator", ["../x.png", "/etc/passwd", "a/../../x.png", "", 3, None, "\\q"]
)
def test_a_locator_cannot_leave_the_folder(tmp_path, locator):
    write(tmp_path / "root/a.png")
    write(tmp_path / "x.png")
    with pytest.raises(SourceError):
        open_source(f"folder:{tmp_path}/root").read(locator)


def test_names_in_any_script_and_in_no_encoding_at_all(tmp_path):
    names = [
        "日本語.png".encode(),
        "Ελληνικά.png".encode(),
        "صورة.png".encode(),
        "🦆.png".encode(),
        b"back\\slash.png",
        b"new\nline.png",
        b"latin-\xe9.png",
        b"cut-\xf0\x9f.png",
        b"\\xe9.png",
    ]
    for number, name in enumerate(names):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(png(number))
    source = open_source(f"folder:{tmp_path}")
    items = list(source.items())
    assert {item.key for item in items} >= {
        "日本語.png",
        "latin-\\xe9.png",
        "cut-\\xf0\\x9f.png",
        "back\\\\slash.png",
        "\\\\xe9.png",
    }
    assert json.loads(json.dumps([item.key for item in items]).encode("utf-8")) == keys(source)
    assert {source.read(item.locator) for item in items} == {png(n) for n in range(len(names))}
    assert_reads_in_a_fresh_process(source)


def test_printable_names_are_one_to_one():
    names = ["a", "a\\b", "\\", "\\\\x41", "\udce9", "\\\udc80é", "x\udcff\udc80"]
    assert [base.unprintable(base.printable(name)) for name in names] == names
    assert len({base.printable(name) for name in names}) == len(names)
    for name in names:
        base.printable(name).encode("utf-8")


def test_listing_reads_no_file_and_touches_none(tmp_path, monkeypatch):
    for number in range(50):
        write(tmp_path / f"{number % 5}/{number}.png")
    monkeypatch.setattr(walk, "os", PatchedOs(stat=None))
    monkeypatch.setattr(files, "os", PatchedOs(open=None))
    assert len(keys(open_source(f"folder:{tmp_path}"))) == 50


def test_folders_nested_deeper_than_the_stack(tmp_path):
    depth = sys.getrecursionlimit() + 100
    with contextlib.chdir(tmp_path):
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("a.png").write_bytes(png())
    try:
        assert keys(open_source(f"folder:{tmp_path}")) == ["d/" * depth + "a.png"]
    finally:
        # Python's own removal, which pytest uses, recurses.
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


@pytest.fixture
def bucket(tmp_path):
    """`gs://bucket` in a folder of this machine."""
    from etils.epath import testing

    def local(path):
        return str(path).replace("gs://bucket", str(tmp_path), 1)

    def remote(path):
        return str(path).replace(str(tmp_path), "gs://bucket", 1)

    def listed(original, path, **options):
        for top, folders, names in original(local(path), **options):
            yield remote(top), folders, names

    with testing.mock_epath(
        open=lambda original, path, mode: original(local(path), mode),
        exists=lambda original, path: original(local(path)),
        isdir=lambda original, path: original(local(path)),
        glob=lambda original, path: [remote(found) for found in original(local(path))],
        walk=listed,
    ):
        yield tmp_path


def test_buckets_are_folders_too(bucket):
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


def test_a_bucket_file_that_comes_as_a_context_stays_open(tmp_path):
    from etils.epath import testing

    class File(io.FileIO):
        """With room for attributes, as TensorFlow's files have."""

    @contextlib.contextmanager
    def opened(original, path, mode):
        with File(write(tmp_path / "a.png", png(7))) as file:
            yield file

    with testing.mock_epath(open=opened):  # So etils opens files when TensorFlow is installed.
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


# Patterns


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


def test_a_missing_shard_is_no_accident_to_pass_over(tmp_path):
    make_tar(tmp_path / "a-000.tar", {"1.png": png()})
    with pytest.raises(SourceError, match=r"a-001.tar' matches no file \(nor do 1 more\)"):
        open_source(f"tar:{tmp_path}/a-{{000..002}}.tar")


def test_a_range_without_bounds_is_refused(tmp_path):
    with pytest.raises(SourceError, match="more than 100,000 files"):
        open_source(f"tar:{tmp_path}/a-{{0..99999999999}}.tar")


# Tars


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        mode = "w:gz"
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


SAMPLES = {
    "train/0001.jpg": png(1),
    "train/0001.cls": b"2",
    "train/0001.txt": b"a duck",
    "train/0002.cls": b"0\n",
    "train/0002.left.png": png(2),
    "train/0002.right.png": png(3),
    "./0003.png": png(4),
    "0003.json": b'{"label": 1, "caption": "b"}',
    "0004.png": png(5),
    "0005.json": b'{"label": 1}',
}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_samples_carry_their_labels(tmp_path, format):
    make_tar(tmp_path / "a-0.tar", SAMPLES, format=format)
    source = open_source(f"tar:{tmp_path}/a-0.tar")
    items = list(source.items())
    assert [(item.key, item.label) for item in items] == [
        ("a-0.tar/train/0001.jpg", 2),
        ("a-0.tar/train/0002.left.png", 0),
        ("a-0.tar/train/0002.right.png", 0),
        ("a-0.tar/0003.png", 1),
        ("a-0.tar/0004.png", -1),
    ]
    assert [source.read(item.locator) for item in items] == [png(n) for n in range(1, 6)]
    assert source.label_names == ("0", "1", "2")
    assert source.skipped == {".cls": 2, ".json": 2, ".txt": 1} and source.rejects == []
    assert open_source(source.spec).label_names == ("0", "1", "2")  # Asked before listing.
    assert_reads_in_a_fresh_process(source)


def test_labels_by_name_are_numbered_in_sorted_order(tmp_path):
    make_tar(tmp_path / "a.tar", {"1.png": png(), "1.json": b'{"label": "duck"}'})
    make_tar(
        tmp_path / "b.tar",
        {
            "1.png": png(),
            "1.json": b'{"label": "ant"}',
            "2.png": png(),
            "2.json": b'{"label": null}',
        },
    )
    source = open_source(f"tar:{tmp_path}/*.tar")
    assert [item.label for item in source.items()] == [1, 0, -1]
    assert source.label_names == ("ant", "duck")


def test_labels_of_two_kinds_are_refused(tmp_path):
    make_tar(
        tmp_path / "a.tar",
        {
            "1.png": png(),
            "1.cls": b"3",
            "2.png": png(),
            "2.json": b'{"label": "ant"}',
        },
    )
    with pytest.raises(SourceError, match=r"labels by number \(3\) and by name \('ant'\)"):
        list(open_source(f"tar:{tmp_path}/a.tar").items())


@pytest.mark.parametrize(
    "name, data",
    [
        ("1.cls", b"duck"),
        ("1.cls", b"-2"),
        ("1.cls", b"40000"),
        ("1.cls", b"\xff"),
        ("1.json", b"{"),
        ("1.json", b'{"label": 1.5}'),
        ("1.json", b'{"label": true}'),
        ("1.json", b"[" * 100_000),
        ("1.cls", b" " * 2_000_000),
    ],
)
def test_a_label_that_makes_no_sense_sets_its_image_aside(tmp_path, name, data):
    make_tar(tmp_path / "a.tar", {"1.png": png(), name: data, "2.png": png(), "2.cls": b"1"})
    source = open_source(f"tar:{tmp_path}/a.tar")
    assert keys(source) == ["a.tar/2.png"]
    assert "its label" in reasons(source)["a.tar/1.png"]
    assert len(reasons(source)["a.tar/1.png"]) < 200


def test_a_plain_tar_is_read_at_random_by_offset_alone(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tar", {f"{n:03d}.png": png(n) for n in range(100)})
    source = open_source(f"tar:{tmp_path}/a.tar")
    items = list(source.items())
    monkeypatch.setattr(tarfile.TarFile, "next", None)
    for number in (57, 3, 99, 3, 0):
        assert source.read(items[number].locator) == png(number)


@pytest.mark.parametrize(
    "suffix, compress",
    [
        (".tar.gz", gzip.compress),
        (".tgz", gzip.compress),
        (".tar.bz2", bz2.compress),
        (".tar.xz", lzma.compress),
        (".tar", gzip.compress),
    ],
)
def test_compressed_tars_are_known_by_their_bytes_and_read_in_any_order(tmp_path, suffix, compress):
    plain = make_tar(tmp_path / "plain", {f"{n:03d}.png": png(n) for n in range(50)})
    write(tmp_path / f"a{suffix}", compress(plain.read_bytes()))
    source = open_source(f"tar:{tmp_path}/a*{suffix}")
    items = list(source.items())
    for number in (*range(50), 7, 0, 49):
        assert source.read(items[number].locator) == png(number)
    assert_reads_in_a_fresh_process(source)


def test_reading_a_compressed_tar_in_order_decompresses_it_once(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tar.gz", {f"{n}.png": png(n) + os.urandom(3000) for n in range(200)})
    source = open_source(f"tar:{tmp_path}/a.tar.gz")
    rewinds = []
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(
        gzip._GzipReader, "_rewind", lambda reader: (rewinds.append(1), rewind(reader))
    )
    items = list(source.items())
    for item in items:
        source.read(item.locator)
    assert rewinds == []
    source.read(items[0].locator)
    assert rewinds == [1]


def test_zstd_is_refused_with_the_way_out(tmp_path):
    write(tmp_path / "a.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(100))
    source = open_source(f"tar:{tmp_path}/a.tar.zst")
    with pytest.raises(SourceError, match="compressed with zstd.*unpack it first"):
        list(source.items())


def test_members_that_lead_out_links_and_devices_are_refused_and_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("/etc/x.png", "../x.png", "a/../../x.png", "good/x.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(png())
            archive.addfile(entry, io.BytesIO(png()))
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
        ):
            entry = tarfile.TarInfo(f"odd-{number}.png")
            entry.type, entry.linkname = kind, "good/x.png"
            archive.addfile(entry)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    source = open_source(f"tar:{tmp_path}/a.tar")
    assert keys(source) == ["a.tar/good/x.png"]
    named = reasons(source)
    for name in ("/etc/x.png", "../x.png", "a/../../x.png"):
        assert named.pop(f"a.tar/{name}") == "its path leads out of the archive"
    assert [named[f"a.tar/odd-{n}.png"].split(",")[0] for n in range(5)] == [
        "a symbolic link",
        "a hard link",
        "a device",
        "a device",
        "a pipe",
    ]


def test_sparse_members_are_set_aside_and_what_follows_is_kept(tmp_path):
    with open(write(tmp_path / "a.png"), "r+b") as file:
        file.truncate(2**20)
    write(tmp_path / "b.png", png(1))
    made = subprocess.run(
        ["tar", "--sparse", "-cf", "a.tar", "a.png", "b.png"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip(f"no tar that writes sparse members: {made.stderr.decode()}")
    source = open_source(f"tar:{tmp_path}/a.tar")
    assert keys(source) == ["a.tar/b.png"]
    assert reasons(source) == {"a.tar/a.png": "a sparse file, expected an ordinary file"}


def test_repeated_names_are_all_kept_under_keys_of_their_own(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            entry = tarfile.TarInfo("x.png")
            entry.size = len(png(number))
            archive.addfile(entry, io.BytesIO(png(number)))
    source = open_source(f"tar:{path}")
    items = list(source.items())
    assert [item.key for item in items] == ["a.tar/x.png", "a.tar/x.png#2", "a.tar/x.png#3"]
    assert [source.read(item.locator) for item in items] == [png(0), png(1), png(2)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
def test_a_tar_cut_anywhere_keeps_what_is_whole_and_names_the_damage(tmp_path, compress):
    members = {f"{n}.png": png(n) + os.urandom(700) for n in range(6)}
    plain = make_tar(tmp_path / "plain", members).read_bytes()
    last = plain.rstrip(b"\0")
    marked = -(-len(last) // 512) * 512 + 512  # One block of zeros marks the end.
    whole = compress(plain)
    path = tmp_path / "a.tar"
    counts = set()
    for length in range(len(whole) - 1, 0, -97):
        path.write_bytes(whole[:length])
        source = open_source(f"tar:{path}")
        try:
            items = list(source.items())
        except SourceError as error:
            assert "1 set aside" in str(error)
            items = []
        counts.add(len(items))
        for item in items:
            assert source.read(item.locator) == members[item.key.removeprefix("a.tar/")]
        if len(items) < len(members) or (compress is bytes and length < marked):
            assert f"cut short after {len(items)} members" in reasons(source)["a.tar"]
    assert counts >= {0, 1, 3, 5}


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = make_tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 5] ^= 0xFF  # Each member takes a block for its header and one for its data.
    path.write_bytes(data)
    source = open_source(f"tar:{path}")
    assert keys(source) == ["a.tar/0.png", "a.tar/1.png"]
    assert reasons(source)["a.tar"] == "damaged or cut short after 2 members: a header is damaged"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [-512, -1024, 2**40, 2**62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_impossible_sizes_in_headers_neither_hang_nor_fill_the_memory(tmp_path, size, kind):
    header = bytearray(tarfile.TarInfo("b.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = make_tar(tmp_path / "a.tar", {"a.png": png()})
    path.write_bytes(path.read_bytes()[:1024] + bytes(header) + bytes(10_240))
    source = open_source(f"tar:{path}")
    assert keys(source) == ["a.tar/a.png"]
    assert "after 1 members" in reasons(source)["a.tar"]


@pytest.mark.timeout(60)
def test_random_damage_is_survived(tmp_path):
    members = {f"{n}.png": png(n) for n in range(5)} | {"5.png": png(), "ü" * 150: b"x"}
    whole = make_tar(tmp_path / "plain", members).read_bytes()
    end = len(whole.rstrip(b"\0"))
    random = np.random.default_rng(0)
    path = tmp_path / "a.tar"
    named = 0
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, end, 3)
        data[places] ^= random.integers(1, 256, 3, dtype=np.uint8)
        path.write_bytes(data)
        source = open_source(f"tar:{path}")
        with contextlib.suppress(SourceError):
            for item in source.items():
                source.read(item.locator)
        named += bool(source.rejects)
    assert named > 50


def test_one_bad_tar_does_not_stop_the_others(tmp_path):
    make_tar(tmp_path / "a.tar", {"1.png": png()})
    write(tmp_path / "b.tar", b"this is no tar" * 100)
    write(tmp_path / "c.tar", b"")
    make_tar(tmp_path / "d.tar", {"1.png": png()})
    source = open_source(f"tar:{tmp_path}/*.tar")
    assert keys(source) == ["a.tar/1.png", "d.tar/1.png"]
    assert set(reasons(source)) == {"b.tar", "c.tar"}


def test_a_tar_that_shrank_after_listing_is_an_error_not_short_bytes(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"1.png": png(), "2.png": png()})
    source = open_source(f"tar:{path}")
    last = list(source.items())[-1]
    os.truncate(path, last.locator[1] + 3)
    with pytest.raises(SourceError, match="a.tar ends before byte"):
        source.read(last.locator)


@pytest.mark.parametrize(
    "locator", [("b.tar", 0, 1), ("a.tar", -1, 4), ("a.tar", 0), "a.tar", None]
)
def test_a_locator_of_another_tar_is_refused(tmp_path, locator):
    make_tar(tmp_path / "a.tar", {"1.png": png()})
    make_tar(tmp_path / "b.tar", {"1.png": png()})
    with pytest.raises(SourceError, match="is not the place of a member"):
        open_source(f"tar:{tmp_path}/a.tar").read(locator)


def test_a_forked_process_reads_beside_its_parent(tmp_path):
    make_tar(tmp_path / "a.tar", {f"{n}.png": png(n) + os.urandom(9000) for n in range(60)})
    code = (
        "import os, sys\n"
        "from data_pipelines.sources import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "expected = [(item, source.read(item.locator)) for item in source.items()]\n"
        "child = os.fork()\n"
        "for _ in range(50):\n"
        "    for item, data in expected:\n"
        "        assert source.read(item.locator) == data\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )  # In a process of its own: this one may have threads, which a fork would not survive.
    subprocess.run(
        [sys.executable, "-c", code, f"tar:{tmp_path}/a.tar"],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"{CIFAR10} is not there")
def test_real_tar_of_ten_thousand_images():
    source = open_source(f"tar:{CIFAR10}")
    items = list(source.items())
    assert len(items) == 10_000 and source.rejects == []
    image = Image.open(io.BytesIO(source.read(items[5].locator)))
    assert image.size == (32, 32)


# TensorFlow Datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Small datasets in ArrayRecord, as TFDS writes them."""
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(names=["ant", "duck", "cat"]),
        "coarse": tfds.features.ClassLabel(num_classes=2),
        "note": tfds.features.Text(),
    }

    def examples(count):
        return [
            {"image": io.BytesIO(png(n)), "label": n % 3, "coarse": 0, "note": "x"}
            for n in range(count)
        ]

    write_tfds(root, "toy", features, {"train": examples(70), "test": examples(2)})
    write_tfds(root, "words", {"note": tfds.features.Text()}, {"train": [{"note": "x"}]})
    return root


def write_tfds(root, name, features, splits):
    import tensorflow_datasets as tfds

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 30, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()


@pytest.fixture
def tfds_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def test_tfds_gives_the_stored_bytes_and_labels(tfds_dir):
    source = open_source("tfds:toy")
    items = list(source.items())
    assert source.label_names == ("ant", "duck", "cat")
    assert items[69] == ("toy/1.0.0/train/00000069", 69, 0) and len(items) == 70
    assert [item.label for item in items] == [n % 3 for n in range(70)]
    assert [source.read(item.locator) for item in items] == [png(n) for n in range(70)]
    assert "tensorflow" not in sys.modules
    assert_reads_in_a_fresh_process(open_source("tfds:toy:test"))


@pytest.mark.parametrize(
    "spec, count",
    [
        ("tfds:toy:test", 2),
        ("tfds:toy:train[10:15]", 5),
        ("tfds:toy:1.0.0:train+test", 72),
    ],
)
def test_tfds_splits_are_its_own(tfds_dir, spec, count):
    assert len(keys(open_source(spec))) == count


def test_tfds_unprepared_names_the_command_and_downloads_nothing(tfds_dir):
    with pytest.raises(SourceError) as error:
        open_source("tfds:mnist")
    assert "tfds build mnist --file_format=array_record" in str(error.value)
    assert str(tfds_dir) in str(error.value) and not (tfds_dir / "mnist").exists()
    with pytest.raises(SourceError, match="tfds build toy/large"):
        open_source("tfds:toy/large:test")


def test_tfds_unknown_split_names_those_there_are(tfds_dir):
    with pytest.raises(SourceError, match="splits: train, test"):
        open_source("tfds:toy:validation")


def test_tfds_without_an_image_names_its_features(tfds_dir):
    with pytest.raises(SourceError, match="no image among its features: note"):
        open_source("tfds:words")


def test_tfds_in_a_format_without_random_access_names_the_conversion(
    tfds_dir, tmp_path, monkeypatch
):
    shutil.copytree(tfds_dir / "toy", tmp_path / "toy")
    about = tmp_path / "toy/1.0.0/dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SourceError, match="stored as tfrecord.*tfds convert_format"):
        open_source("tfds:toy")


def test_tfds_with_a_damaged_file_names_the_records(tfds_dir, tmp_path, monkeypatch):
    shutil.copytree(tfds_dir / "toy", tmp_path / "toy")
    shard = min((tmp_path / "toy/1.0.0").glob("toy-train*"))
    data = bytearray(shard.read_bytes())
    data[500] ^= 0xFF
    shard.write_bytes(data)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:toy")
    listed = keys(source)
    assert 40 <= len(listed) < 70 and len(listed) + len(source.rejects) == 70
    assert all("record cannot be read" in reason for reason in reasons(source).values())
    bad = int(source.rejects[0].key.rsplit("/", 1)[1])
    with pytest.raises(SourceError, match=f"record {bad} of tfds:toy cannot be read"):
        source.read(bad)


@pytest.mark.parametrize("locator", [-1, 70, "0", None])
def test_tfds_refuses_a_wrong_locator(tfds_dir, locator):
    with pytest.raises(SourceError, match="0 to 69"):
        open_source("tfds:toy").read(locator)


# Parquet


def make_parquet(path, images, labels=None, *, names=None, group=4, columns=("image", "label")):
    """A file as Hugging Face's `datasets` writes it; `names` makes the label a ClassLabel."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [
        image if image is None or isinstance(image, dict) else {"bytes": image, "path": "x.png"}
        for image in images
    ]
    arrays = {columns[0]: pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    features = {columns[0]: {"_type": "Image"}}
    if labels is not None:
        arrays[columns[1]] = pa.array(labels)
        features[columns[1]] = {"_type": "ClassLabel", "names": names} if names else {}
    content = pa.table(arrays)
    about = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        content.replace_schema_metadata({"huggingface": about}), path, row_group_size=group
    )
    return path


def test_parquet_of_hugging_face(tmp_path):
    names = ["ant", "duck", "cat"]
    labels = [n % 3 for n in range(10)]
    make_parquet(
        tmp_path / "a-0.parquet",
        [png(n) for n in range(10)],
        labels,
        names=names,
        columns=("photo_of", "species"),
    )
    make_parquet(
        tmp_path / "a-1.parquet", [png(99)], [None], names=names, columns=("photo_of", "species")
    )
    source = open_source(f"parquet:{tmp_path}/a-*.parquet")
    items = list(source.items())
    assert source.label_names == ("ant", "duck", "cat")
    assert [item.label for item in items] == [*labels, -1]
    assert items[5] == ("a-0.parquet/00000005", ("a-0.parquet", 1, 1), 2)
    assert [source.read(i.locator) for i in items] == [*(png(n) for n in range(10)), png(99)]
    assert source.read(items[2].locator) == png(2)
    assert_reads_in_a_fresh_process(source)


def test_parquet_with_nulls_sets_them_aside_by_name(tmp_path):
    images = [png(0), None, {"bytes": None, "path": "far/away.png"}, {"bytes": None, "path": None}]
    path = make_parquet(tmp_path / "a.parquet", [*images, png(4), png(5)], [0, 1, 1, 1, None, 1])
    source = open_source(f"parquet:{path}")
    assert [(item.key, item.label) for item in source.items()] == [
        ("a.parquet/00000000", 0),
        ("a.parquet/00000004", -1),
        ("a.parquet/00000005", 1),
    ]
    assert reasons(source) == {
        "a.parquet/00000001": "no image: null",
        "a.parquet/00000002": "its image is a path, 'far/away.png', without the bytes",
        "a.parquet/00000003": "no image: null",
    }
    with pytest.raises(SourceError, match="row 1 of row group 0 of a.parquet holds no image"):
        source.read(("a.parquet", 0, 1))


def test_parquet_without_a_description(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"id": [b"x", b"y"], "png": [png(1), png(2)], "label": ["b", "a"]}), path
    )
    source = open_source(f"parquet:{path}")
    assert source.label_names == ("a", "b")
    assert [(item.label, source.read(item.locator)) for item in source.items()] == [
        (1, png(1)),
        (0, png(2)),
    ]


def test_parquet_without_an_image_column_names_the_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"found: text \(string\), label \(int64\)"):
        open_source(f"parquet:{tmp_path}/a.parquet")


def test_parquet_label_outside_its_classes_is_set_aside(tmp_path):
    path = make_parquet(tmp_path / "a.parquet", [png(0), png(1)], [0, 7], names=["ant", "duck"])
    source = open_source(f"parquet:{path}")
    assert keys(source) == ["a.parquet/00000000"]
    assert reasons(source) == {"a.parquet/00000001": "its label is 7, expected one of 2"}


def test_parquet_damaged_or_different_files_are_named_and_the_rest_listed(tmp_path):
    good = make_parquet(tmp_path / "b.parquet", [png(n) for n in range(8)])
    write(tmp_path / "a.parquet", good.read_bytes()[:-20])
    write(tmp_path / "c.parquet", b"")
    make_parquet(tmp_path / "d.parquet", [png(0)], columns=("other", "label"))
    source = open_source(f"parquet:{tmp_path}/*.parquet")
    assert len(keys(source)) == 8
    assert set(reasons(source)) == {"a.parquet", "c.parquet", "d.parquet"}
    assert "no column 'image'" in reasons(source)["d.parquet"]
    shutil.copy(tmp_path / "c.parquet", good)
    (tmp_path / "d.parquet").unlink()
    with pytest.raises(SourceError, match="no readable parquet file"):
        open_source(f"parquet:{tmp_path}/*.parquet")


@pytest.mark.timeout(60)
def test_parquet_with_flipped_bytes_is_survived(tmp_path):
    whole = make_parquet(
        tmp_path / "a.parquet", [png(n) for n in range(40)], [n % 2 for n in range(40)]
    ).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(100):
        data = np.frombuffer(whole, np.uint8).copy()
        data[random.integers(0, len(data), 2)] ^= 0x55
        write(tmp_path / "a.parquet", data.tobytes())
        with contextlib.suppress(SourceError):
            source = open_source(f"parquet:{tmp_path}/a.parquet")
            for item in source.items():
                with contextlib.suppress(SourceError):
                    source.read(item.locator)


@pytest.mark.parametrize(
    "locator",
    [
        ("b.parquet", 0, 0),
        ("a.parquet", 9, 0),
        ("a.parquet", 0, 9),
        ("a.parquet", -1, 0),
        3,
        None,
    ],
)
def test_parquet_refuses_a_wrong_locator(tmp_path, locator):
    path = make_parquet(tmp_path / "a.parquet", [png(0), png(1)])
    source = open_source(f"parquet:{path}")
    with pytest.raises(SourceError):
        source.read(locator)
    assert source.read(("a.parquet", 0, 1)) == png(1)


def test_parquet_row_groups_larger_than_memory_are_read_through_a_window(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_WHOLE_GROUP_BYTES", 1000)
    images = [png(n) for n in range(100)]
    path = make_parquet(tmp_path / "a.parquet", [*images, None], group=101)
    source = open_source(f"parquet:{path}")
    items = list(source.items())
    assert len(items) == 100 and len(source.rejects) == 1
    for number in (*range(100), 40, 41, 3, 99):
        assert source.read(items[number].locator) == images[number]
    with source._tables.borrow(str(path)) as open_table:
        assert len(open_table._window) <= table._WINDOW_ROWS


# All of them


def every_source(tmp_path):
    write(tmp_path / "folder/a/1.png")
    yield open_source("digits")
    yield open_source(f"folder:{tmp_path}/folder")
    yield open_source(f"tar:{make_tar(tmp_path / 'a.tar', SAMPLES)}")
    yield open_source(f"parquet:{make_parquet(tmp_path / 'a.parquet', [png()], [0])}")


def test_listings_repeat_and_sources_pickle_as_their_spec(tmp_path):
    for source in every_source(tmp_path):
        again = pickle.loads(pickle.dumps(source))
        listing = list(source.items())
        assert listing == list(source.items()) == list(again.items())
        assert again.spec == source.spec and again.label_names == source.label_names
        assert again.read(listing[0].locator) == source.read(listing[0].locator)
        assert all(-1 <= item.label < len(source.label_names) for item in listing)


def test_a_second_pass_does_not_count_twice(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.txt")
    (tmp_path / "broken.png").symlink_to("nowhere")
    source = open_source(f"folder:{tmp_path}")
    for _ in range(2):
        keys(source)
        assert len(source.rejects) == 1 and source.skipped == {".txt": 1}


def test_kinds_of_skipped_files_are_bounded(tmp_path):
    write(tmp_path / "a.png")
    for number in range(100):
        write(tmp_path / f"x.kind{number}")
    source = open_source(f"folder:{tmp_path}")
    keys(source)
    assert len(source.skipped) == 65 and source.skipped.total() == 100


def test_tfds_gives_videos_of_the_stored_frames(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow", reason="TFDS makes its feature Video with TensorFlow only")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    frames = (
        np.zeros((6, 16, 24, 3), np.uint8) + 40 * np.arange(6, dtype=np.uint8)[:, None, None, None]
    )
    features = {
        "video": tfds.features.Video(shape=(None, 16, 24, 3)),
        "label": tfds.features.ClassLabel(names=["run", "walk"]),
    }
    write_tfds(tmp_path, "clips", features, {"train": [{"video": frames, "label": 1}]})
    source = open_source("tfds:clips", "video")
    (item,) = source.items()
    assert (item.label, source.label_names) == (1, ("run", "walk"))
    with av.open(io.BytesIO(source.read(item.locator))) as container:
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(found, frames)
    with pytest.raises(SourceError, match="has no image among its features"):
        open_source("tfds:clips")


@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
def test_frames_of_a_record_become_a_video_without_being_decoded(encoding):
    frames = []
    for shade in range(0, 240, 40):
        file = io.BytesIO()
        Image.new("RGB", (24, 16), (shade, 90, 255 - shade)).save(file, encoding)
        frames.append(file.getvalue())
    with av.open(io.BytesIO(tfds_source._film(frames))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        assert container.streams.video[0].average_rate == 25
    assert packets == frames
    with pytest.raises(SourceError, match="make no video"):
        tfds_source._film([b"no image"])
