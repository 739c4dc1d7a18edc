"""The source `parquet`: columns, labels, nulls and damage."""

import contextlib
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from data_pipelines.sources import SourceError, open_source
from data_pipelines.sources.tables import table
from tests.data_pipelines.sources.helpers import (
    assert_reads_in_a_fresh_process,
    keys,
    make_parquet,
    png,
    reasons,
    write,
)


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


def test_parquet_rejects_nulls(tmp_path):
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


def test_parquet_without_metadata(tmp_path):
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


def test_parquet_without_an_image_column_lists_the_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"found: text \(string\), label \(int64\)"):
        open_source(f"parquet:{tmp_path}/a.parquet")


def test_parquet_rejects_labels_outside_its_classes(tmp_path):
    path = make_parquet(tmp_path / "a.parquet", [png(0), png(1)], [0, 7], names=["ant", "duck"])
    source = open_source(f"parquet:{path}")
    assert keys(source) == ["a.parquet/00000000"]
    assert reasons(source) == {"a.parquet/00000001": "its label is 7, expected one of 2"}


def test_parquet_rejects_damaged_or_different_files_and_lists_the_rest(tmp_path):
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
def test_parquet_with_flipped_bytes_raises_only_source_errors(tmp_path):
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


def test_parquet_reads_large_row_groups_in_windows(tmp_path, monkeypatch):
    sizes = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def record_sizes(self, **options):
        for batch in original(self, **options):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", record_sizes)
    monkeypatch.setattr(table, "WHOLE_GROUP_BYTES", 1000)
    images = [png(n) for n in range(100)]
    path = make_parquet(tmp_path / "a.parquet", [*images, None], group=101)
    source = open_source(f"parquet:{path}")
    items = list(source.items())
    assert len(items) == 100 and len(source.rejects) == 1
    for number in (*range(100), 40, 41, 3, 99):
        assert source.read(items[number].locator) == images[number]
    assert 0 < max(sizes) <= table.WINDOW_ROWS
