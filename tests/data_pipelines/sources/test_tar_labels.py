"""The labels of images in tars: order, foreign members, repetition, and what is reported."""

import io
import tarfile
import unicodedata

import pytest

from data_pipelines.sources import SourceError, open_source
from tests.data_pipelines.sources.helpers import keys, make_tar, png, reasons, write


def labels(source) -> dict[str, int]:
    return {item.key.partition("/")[2]: item.label for item in source.items()}


def tar_of(path, members):
    """Like `make_tar`, for a list of members in which a name may be repeated."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.LNKTYPE, data
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return open_source(f"tar:{path}")


APPLE = b"\0\5\x16\7"


@pytest.mark.parametrize(
    "members",
    [
        [("0.png", png()), ("1.png", png()), ("0.cls", b"0"), ("1.cls", b"1")],
        [("0.cls", b"0"), ("1.cls", b"1"), ("1.png", png()), ("0.png", png())],
        [("1.cls", b"1"), ("0.png", png()), ("0.cls", b"0"), ("x.txt", b""), ("1.png", png())],
        [
            *(("._0.cls", APPLE), ("0.cls", b"0"), ("._0.png", APPLE), ("0.png", png())),
            *(("._1.cls", APPLE), ("1.cls", b"1"), ("._1.png", APPLE), ("1.png", png())),
        ],
        [("./0.png", png()), ("0.cls", b"0"), ("././1.png", png()), ("./1.cls", b"1")],
        [("0.png", png()), ("0.CLS", b"0"), ("1.png", png()), ("1.Json", b'{"label": 1}')],
        [("0.png", png()), ("0.cls", b"\xef\xbb\xbf0\r\n"), ("1.png", png()), ("1.cls", b" 1\n")],
        [
            ("0.png", png()),
            ("0.json", b'\xef\xbb\xbf{"label": 0}'),
            ("1.png", png()),
            ("1.cls", b"1"),
        ],
    ],
)
def test_a_label_reaches_its_image_whatever_the_members(tmp_path, members):
    source = tar_of(tmp_path / "a.tar", members)
    assert labels(source) == {"0.png": 0, "1.png": 1}
    assert source.rejects == [] and source.warnings == []


@pytest.mark.parametrize(
    "jsons, label",
    [
        ({"b.info.json": b'{"width": 3}', "b.json": b'{"label": 1}'}, 1),
        ({"b.info.json": b'{"label": 7}', "b.json": b'{"label": 1}'}, 1),
        ({"b.json": b'{"width": 3}', "b.info.json": b'{"label": 1}'}, 1),
        ({"b.json": b'{"label": 5}', "b.cls": b"1"}, 1),
        ({"b.json": b'{"label": 1}', "b.cls": b"-1"}, 1),
    ],
)
def test_of_several_label_members_the_shortest_extension_wins(tmp_path, jsons, label):
    make_tar(tmp_path / "a.tar", {**jsons, "b.png": png()})
    assert labels(open_source(f"tar:{tmp_path}/a.tar")) == {"b.png": label}


def test_labels_that_differ_are_rejected_by_name(tmp_path):
    members = [("a.x.json", b'{"label": 1}'), ("a.y.json", b'{"label": 2}'), ("a.png", png())]
    members += [
        ("b.cls", b"1"),
        ("c.png", png()),
        ("b.cls", b"2"),
        ("c.cls", b"0"),
        ("b.png", png()),
    ]
    source = tar_of(tmp_path / "a.tar", [*members, ("z.cls", b"0"), ("b.webp", png())])
    assert labels(source) == {"c.png": 0}
    for name in ("a.png", "b.png", "b.webp"):
        assert "differ: 1, 2" in reasons(source)[f"a.tar/{name}"]


def test_a_repeated_sample_keeps_the_label_of_its_own_run(tmp_path):
    members = [("0.png", png(1)), ("0.cls", b"0"), ("0.png", png(2)), ("0.cls", b"1")]
    source = tar_of(tmp_path / "a.tar", members)
    assert labels(source) == {"0.png": 0, "0.png#2": 1}


@pytest.mark.parametrize("base", ["IMG_1", "café"])
def test_names_that_differ_in_case_or_composition_belong_together(tmp_path, base):
    written = unicodedata.normalize("NFD", base).upper()
    source = tar_of(tmp_path / "a.tar", [(f"{base.lower()}.png", png()), (f"{written}.cls", b"1")])
    assert list(labels(source).values()) == [1]


def test_a_label_that_is_a_link_rejects_its_image(tmp_path):
    members = [("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", "0.cls")]
    source = tar_of(tmp_path / "a.tar", members)
    assert labels(source) == {"0.png": 0}
    assert "its label '1.cls' is a hard link" in reasons(source)["a.tar/1.png"]


@pytest.mark.parametrize("text", [b"1_0", "٣".encode(), b"", b"0x1", b"1.0", b"1 2"])
def test_only_plain_integers_are_labels(tmp_path, text):
    source = tar_of(tmp_path / "a.tar", [("0.png", png()), ("0.cls", text), ("1.png", png())])
    assert labels(source) == {"1.png": -1}
    assert "cannot be read" in reasons(source)["a.tar/0.png"]


def test_doubtful_samples_are_reported(tmp_path):
    members = [("0.png", png()), ("0.mask.png", png()), ("0.cls", b"0"), ("7.cls", b"0")]
    source = tar_of(tmp_path / "a.tar", [*members, ("8.json", b"{}"), ("1.png", png())])
    assert labels(source) == {"0.png": 0, "0.mask.png": 0, "1.png": -1}
    several, unused, unlabelled = source.warnings
    assert "1 samples have several" in several and "a.tar/0.png" in several
    assert "1 labels belong to no image" in unused and "a.tar/7.cls" in unused
    assert "1 of 3 images have no label" in unlabelled and "a.tar/1.png" in unlabelled


def test_files_of_several_splits_are_reported(tmp_path):
    for name in ("train-0.tar", "train-1.tar", "test-0.tar"):
        make_tar(tmp_path / name, {"0.png": png()})
    source = open_source(f"tar:{tmp_path}/*.tar")
    assert len(keys(source)) == 3 and "(test, train)" in source.warnings[0]
    source = open_source(f"tar:{tmp_path}/train-*.tar")
    assert len(keys(source)) == 2 and source.warnings == []


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_data_after_the_end_mark_is_reported(tmp_path, mode):
    first = make_tar(tmp_path / "1", {"1.png": png()}, mode).read_bytes()
    second = make_tar(tmp_path / "2", {"2.png": png()}, mode).read_bytes()
    write(tmp_path / "a.tar", first + second)
    source = open_source(f"tar:{tmp_path}/a.tar")
    assert keys(source) == ["a.tar/1.png"]
    assert "data after its end-of-archive mark, from byte 10240" in reasons(source)["a.tar"]
    write(tmp_path / "a.tar", first)
    source = open_source(f"tar:{tmp_path}/a.tar")
    assert keys(source) == ["a.tar/1.png"] and source.rejects == []


def test_a_link_to_another_tar_of_the_source_is_rejected(tmp_path):
    make_tar(tmp_path / "b.tar", {"0.png": png()})
    (tmp_path / "a.tar").symlink_to("b.tar")
    source = open_source(f"tar:{tmp_path}/*.tar")
    assert keys(source) == ["b.tar/0.png"]
    assert "link to b.tar, which is listed itself" in reasons(source)["a.tar"]
    assert keys(open_source(f"tar:{tmp_path}/a.tar")) == ["a.tar/0.png"]


def test_a_file_that_is_no_tar_is_named_as_such(tmp_path):
    write(tmp_path / "a.tar", b"<html>404 Not Found</html>" * 100)
    with pytest.raises(SourceError, match="no tar, it begins with b'<html>404"):
        list(open_source(f"tar:{tmp_path}/a.tar").items())
