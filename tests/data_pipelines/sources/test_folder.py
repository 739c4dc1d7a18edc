"""The source `folder`: labels, links, special files and names."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.sources import SourceError, base, files, open_source
from data_pipelines.sources.folders import walk
from data_pipelines.utils.files import StorageUnavailable
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


def test_a_picture_beside_class_folders_is_named(tmp_path):
    for name in ("cats/1.png", "dogs/1.png", "cover.png"):
        write(tmp_path / name)
    source = open_source(f"folder:{tmp_path}")
    assert [item.label for item in source.items()] == [-1, -1, -1]
    (warning,) = source.warnings
    assert "'cover.png' lies directly" in warning and "(cats, dogs)" in warning
    assert warning == source.label_advice


@pytest.mark.parametrize(
    "classes, words",
    [
        (("train", "val"), ["'train', 'val'", "--source=folder:"]),
        (("Training",), ["'Training'"]),
        (("car", "train"), []),  # a vehicle
        (("images", "masks"), ["'masks'"]),
        (("Cat", "cat"), ["'Cat' and 'cat'"]),
        (("cafe\u0301", "caf\u00e9"), ["differ in case or accents"]),
    ],
)
def test_doubtful_class_names_are_reported(tmp_path, classes, words):
    for name in classes:
        write(tmp_path / name / "1.png")
    source = open_source(f"folder:{tmp_path}")
    assert len(keys(source)) == len(classes) == len(source.label_names)
    assert len(source.warnings) == bool(words)
    assert all(word in source.warnings[0] for word in words)


def test_pictures_named_like_masks_of_others_are_reported(tmp_path):
    for name in ("a/0.jpg", "a/0_mask.png", "a/1.jpg", "b/left_mask.png", "b/0.jpg"):
        write(tmp_path / name)
    source = open_source(f"folder:{tmp_path}")
    assert len(keys(source)) == 5
    (warning,) = source.warnings
    assert "1 of 5" in warning and "a/0_mask.png" in warning


@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_links_to_a_class_the_first_name_counts(tmp_path, monkeypatch, reverse):
    """Whatever the order in which a file system lists names."""
    write(tmp_path / "outside/1.png")
    write(tmp_path / "root/c/2.png")
    for name in ("a", "b"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "outside")

    @contextlib.contextmanager
    def listed(path):
        with os.scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=reverse)

    monkeypatch.setattr(walk, "os", PatchedOs(scandir=listed))
    source = open_source(f"folder:{tmp_path}/root")
    assert [(item.key, item.label) for item in source.items()] == [("a/1.png", 0), ("c/2.png", 1)]
    assert source.label_names == ("a", "c") and set(reasons(source)) == {"b/"}


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EMFILE])
def test_an_outage_is_no_fault_of_a_file(tmp_path, monkeypatch, number):
    write(tmp_path / "a/0.png")
    source = open_source(f"folder:{tmp_path}")

    def fail(path, *flags):
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "os", PatchedOs(open=fail))
        with pytest.raises(StorageUnavailable, match=f"{os.strerror(number)}.*resumes"):
            source.read("a/0.png")
    with monkeypatch.context() as patch:
        patch.setattr(walk, "os", PatchedOs(scandir=fail))
        with pytest.raises(StorageUnavailable):
            keys(source)
    assert keys(source) == ["a/0.png"] and source.rejects == []


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "another folder", "a broken link"])
def test_a_folder_that_is_gone_is_no_fault_of_a_file(tmp_path, left):
    root = tmp_path / "root"
    write(tmp_path / "outside/0.png")
    write(root / "b/0.png")
    (root / "a").symlink_to(tmp_path / "outside")
    source = open_source(f"folder:{root}")
    assert keys(source) == ["a/0.png", "b/0.png"]
    (tmp_path / "outside").rename(tmp_path / "moved")
    if left != "a broken link":
        root.rename(tmp_path / "moved/root")
    if left == "an empty folder":
        root.mkdir()
    elif left == "another folder":
        write(root / "c/0.png")
    with pytest.raises(StorageUnavailable):
        source.read("a/0.png")


def test_an_input_output_error_of_one_file_rejects_it_alone(tmp_path, monkeypatch):
    write(tmp_path / "0.png")
    source = open_source(f"folder:{tmp_path}")

    def fail(path, flags):
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(files, "os", PatchedOs(open=fail))
    with pytest.raises(SourceError, match="Input/output error"):
        source.read("0.png")


def test_a_pattern_where_a_folder_is_meant(tmp_path):
    with pytest.raises(SourceError, match=f"one folder, as in 'folder:{tmp_path}'"):
        open_source(f"folder:{tmp_path}/*.jpg")
