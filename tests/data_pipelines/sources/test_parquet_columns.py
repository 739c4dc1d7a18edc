"""The source `parquet`: which columns are read, and class names that differ between files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.sources import SourceError, open_source
from tests.data_pipelines.sources.helpers import make_parquet, png, reasons

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(*data, kind=IMAGE):
    return (
        pa.array([{"bytes": d, "path": None} for d in data], IMAGE)
        if kind == IMAGE
        else (pa.array(data, kind))
    )


def table(path, columns, features=None):
    content = pa.table(columns)
    if features:
        about = json.dumps({"info": {"features": features}})
        content = content.replace_schema_metadata({"huggingface": about})
    pq.write_table(content, path)
    return open_source(f"parquet:{path}")


def names_of(source) -> list[str]:
    return [source.label_names[item.label] for item in source.items()]


@pytest.mark.parametrize("second", [["dog", "cat"], ["dog", "emu", "cat"]])
def test_class_names_in_another_order_are_matched_by_name(tmp_path, second):
    make_parquet(tmp_path / "0.parquet", [png(0), png(1)], [0, 1], names=["cat", "dog"])
    make_parquet(tmp_path / "1.parquet", [png(0), png(1)], [0, 1], names=second)
    source = open_source(f"parquet:{tmp_path}/*.parquet")
    assert names_of(source) == ["cat", "dog", *second[:2]]
    assert source.label_names[:2] == ("cat", "dog")
    assert len(source.warnings) == 1 and "matched by name" in source.warnings[0]


def test_names_as_text_join_names_of_the_metadata(tmp_path):
    make_parquet(tmp_path / "0.parquet", [png(0)], [1], names=["cat", "dog"])
    make_parquet(tmp_path / "1.parquet", [png(1), png(2)], ["dog", "ant"])
    source = open_source(f"parquet:{tmp_path}/*.parquet")
    assert names_of(source) == ["dog", "dog", "ant"]


def test_numbers_with_and_without_class_names_are_refused(tmp_path):
    make_parquet(tmp_path / "0.parquet", [png(0)], [0], names=["cat", "dog"])
    make_parquet(tmp_path / "1.parquet", [png(1)], [0])
    with pytest.raises(SourceError, match="0.parquet names its classes and 1.parquet only numbers"):
        list(open_source(f"parquet:{tmp_path}/*.parquet").items())


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("name", ["image", "Image"])
def test_of_several_image_columns_the_usual_name_wins_and_is_reported(tmp_path, described, name):
    features = {"mask": {"_type": "Image"}, name: {"_type": "Image"}} if described else None
    columns = {"mask": images(png(1)), name: images(png(2)), "thumbnail": images(png(3))}
    source = table(tmp_path / "a.parquet", columns, features)
    assert [source.read(item.locator) for item in source.items()] == [png(2)]
    assert not described or f"{name!r} is read and 'mask' not" in source.warnings[0]


def test_of_several_label_columns_the_choice_is_reported(tmp_path):
    columns = {"img": images(png(0)), "coarse_label": [1], "fine_label": [0]}
    kinds = {"_type": "ClassLabel", "names": ["a", "b"]}
    source = table(tmp_path / "a.parquet", columns, {"coarse_label": kinds, "fine_label": kinds})
    assert names_of(source) == ["a"]
    assert "'fine_label', not of 'coarse_label'" in source.warnings[0]


def test_labels_that_pandas_stored_as_floats(tmp_path):
    columns = {
        "image": images(*map(png, range(4))),
        "label": pa.array([1.0, None, 0.5, float("nan")]),
    }
    source = table(tmp_path / "a.parquet", columns)
    assert [item.label for item in source.items()] == [1, -1, -1]
    assert "its label is 0.5" in reasons(source)["a.parquet/00000002"]
    assert "2 of 3 images have no label" in source.warnings[0]


def test_a_label_column_that_cannot_be_used_is_reported(tmp_path):
    source = table(tmp_path / "a.parquet", {"image": images(png(0)), "label": [[0, 1]]})
    assert [item.label for item in source.items()] == [-1]
    assert "'label' of list" in source.warnings[0]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_columns_of_plain_bytes(tmp_path, kind):
    values = pa.array([png(0), png(1), png(0)], pa.binary())
    values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    source = table(tmp_path / "a.parquet", {"image": values, "label": labels})
    found = [(source.read(item.locator), item.label) for item in source.items()]
    assert found == [(png(0), 1), (png(1), 0), (png(0), 1)]
