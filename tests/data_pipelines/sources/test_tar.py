"""The source `tar`: samples, labels, compression and damage."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import SourceError, open_source
from tests.data_pipelines.sources.helpers import (
    SAMPLES,
    assert_reads_in_a_fresh_process,
    keys,
    make_tar,
    png,
    reasons,
    write,
)

CIFAR10 = Path(__file__).parents[4] / "shared/data/cifar10/cifar10-test.tar.xz"


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
    assert open_source(source.spec).label_names == ("0", "1", "2")  # before listing
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
def test_an_image_with_an_unusable_label_is_rejected(tmp_path, name, data):
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
def test_compressed_tars_are_recognised_by_bytes_and_read_in_any_order(tmp_path, suffix, compress):
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


def test_zstd_is_refused(tmp_path):
    write(tmp_path / "a.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(100))
    source = open_source(f"tar:{tmp_path}/a.tar.zst")
    with pytest.raises(SourceError, match="compressed with zstd.*unpack it first"):
        list(source.items())


def test_members_with_unsafe_paths_links_and_devices_are_rejected(tmp_path):
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
        assert named.pop(f"a.tar/{name}").endswith("outside the archive")
    assert [named[f"a.tar/odd-{n}.png"].split(",")[0] for n in range(5)] == [
        "a symbolic link",
        "a hard link",
        "a device",
        "a device",
        "a pipe",
    ]


def test_sparse_members_are_rejected_and_the_next_are_kept(tmp_path):
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


def test_repeated_names_get_different_keys(tmp_path):
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
def test_a_truncated_tar_keeps_complete_members(tmp_path, compress):
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
            assert "1 rejected" in str(error)
            items = []
        counts.add(len(items))
        for item in items:
            assert source.read(item.locator) == members[item.key.removeprefix("a.tar/")]
        if len(items) < len(members) or (compress is bytes and length < marked):
            assert f"after {len(items)} members" in reasons(source)["a.tar"]
    assert counts >= {0, 1, 3, 5}


def test_a_damaged_header_is_not_mistaken_for_the_end(tmp_path):
    path = make_tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 5] ^= 0xFF  # Each member takes a block for its header and one for its data.
    path.write_bytes(data)
    source = open_source(f"tar:{path}")
    assert keys(source) == ["a.tar/0.png", "a.tar/1.png"]
    assert reasons(source)["a.tar"].endswith("after 2 members: a header is damaged")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [-512, -1024, 2**40, 2**62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_implausible_sizes_in_headers_are_rejected(tmp_path, size, kind):
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
def test_random_damage_raises_only_source_errors(tmp_path):
    members = {f"{n}.png": png(n) for n in range(5)} | {"5.png": png(), "ü" * 150: b"x"}
    whole = make_tar(tmp_path / "plain", members).read_bytes()
    end = len(whole.rstrip(b"\0"))
    random = np.random.default_rng(0)
    path = tmp_path / "a.tar"
    named = 0
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        offsets = random.integers(0, end, 3)
        data[offsets] ^= random.integers(1, 256, 3, dtype=np.uint8)
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


def test_a_tar_truncated_after_listing_is_an_error(tmp_path):
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
    with pytest.raises(SourceError, match="not the locator of a member"):
        open_source(f"tar:{tmp_path}/a.tar").read(locator)


def test_a_forked_process_reads_in_parallel_with_its_parent(tmp_path):
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
