"""The source `folder`: labels, links, special files and names."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.sources import SourceError, base, files, open_source
from data_pipelines.sources.folders import walk
from tests.data_pipelines.sources.helpers import (
    PatchedOs,
    assert_reads_in_a_fresh_process,
    keys,
    png,
    reasons,
    write,
)


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


def test_an_image_in_the_folder_itself_means_no_classes(tmp_path):
    write(tmp_path / "cat/a.png")
    write(tmp_path / "b.png")
    source = open_source(f"folder:{tmp_path}")
    assert source.label_names == ()
    assert [(item.key, item.label) for item in source.items()] == [("b.png", -1), ("cat/a.png", -1)]


def test_a_folder_without_images_is_refused(tmp_path):
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
def test_symbolic_links_are_followed_once_and_loops_are_rejected(tmp_path):
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
def test_a_pipe_is_rejected_without_waiting(tmp_path):
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(f"folder:{tmp_path}")
    assert keys(source) == ["a.png"]
    assert "pipe" in reasons(source)["pipe.png"]
    with pytest.raises(SourceError, match="not a regular file"):
        source.read("pipe.png")  # a file may become a pipe after listing


def test_an_unreadable_folder_is_rejected_and_the_rest_is_listed(tmp_path, monkeypatch):
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


def test_an_unreadable_or_deleted_file_is_an_error_when_read(tmp_path, monkeypatch):
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


def test_names_in_any_script_or_encoding(tmp_path):
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


def test_listing_opens_and_stats_no_file(tmp_path, monkeypatch):
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
