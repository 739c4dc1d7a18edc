"""One parquet file: finds the image and label columns and reads rows by index."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.base import SourceError

_NAMES = {
    "image": ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    "video": ("video", "clip", "mp4", "webm", "mkv", "avi", "mov", "movie"),
}
_LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label")

# A row group with up to this many bytes of images is decoded as a whole, for random access. For a
# larger one a window of rows is kept; reading an earlier row starts over.
WHOLE_GROUP_BYTES = 2**26
WINDOW_ROWS = 16
_BUFFER_BYTES = 2**20


class Columns(NamedTuple):
    """The columns of one file.

    Attributes:
      image, label: their names; no label column: None.
      label_names: by number; None if the metadata does not list them.
      warnings: sentences about choices between columns.
    """

    image: str
    label: str | None
    label_names: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


def damage() -> tuple[type[Exception], ...]:
    """The errors that a damaged file, or one that is not parquet, raises."""
    import pyarrow as pa

    return (pa.ArrowException, ValueError, LookupError, *files.READ_ERRORS)


def read_schema(path: str) -> Any:
    """Reads the pyarrow.Schema of a file. Raises one of `damage()`."""
    import pyarrow.parquet as pq

    with files.open_binary(path) as file:
        return pq.read_schema(file)


def find_columns(schema: Any, spec: str, kind: Kind = "image") -> Columns:
    """Finds the columns to read. Raises SourceError if the image or video column is not clear."""
    described = _description(schema)
    columns = {field.name: field.type for field in schema}
    images = [name for name, stored in columns.items() if _is_image(stored)]
    named = [name for name in images if described.get(name, {}).get("_type") == kind.capitalize()]
    image = _first_name(
        _usual(_NAMES[kind], named),
        named,
        _usual(_NAMES[kind], images),
        images if len(images) == 1 else [],
    )
    if image is None:
        listed = ", ".join(f"{name} ({stored})" for name, stored in columns.items())
        raise SourceError(
            f"{spec} has no column of {kind}s, expected one named '{kind}' of binary or "
            f"struct<bytes: binary, path: string> (found: {listed})"
        )
    labels = [name for name, stored in columns.items() if _is_label(stored)]
    classes = [name for name in labels if described.get(name, {}).get("_type") == "ClassLabel"]
    usual = _usual(_LABEL_NAMES, labels)
    label = _first_name(_usual(_LABEL_NAMES, classes), classes, usual)
    warnings = []
    if others := [name for name in named or _usual(_NAMES[kind], images) if name != image]:
        warnings.append(
            f"of several columns of {kind}s, {image!r} is read and {_quoted(others)} not"
        )
    if others := [name for name in dict.fromkeys([*classes, *usual]) if name != label]:
        warnings.append(f"labels are those of the column {label!r}, not of {_quoted(others)}")
    unused = [name for name in _usual(_LABEL_NAMES, list(columns)) if name not in labels]
    if unused and label is None:
        warnings.append(
            f"the column {unused[0]!r} of {columns[unused[0]]} gives no labels, expected numbers "
            "or names"
        )
    names = described.get(label, {}).get("names") if label else ()
    return Columns(image, label, None if names is None else tuple(map(str, names)), tuple(warnings))


def _usual(usual: tuple[str, ...], names: list[str]) -> list[str]:
    """The names that are usual ones, in any case, in the order of the usual ones."""
    return [name for wanted in usual for name in names if name.lower() == wanted]


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))


class Table:
    """An open file. Every method raises one of `damage()` if the file is damaged."""

    def __init__(self, path: str, columns: Columns) -> None:
        import pyarrow.parquet as pq

        self._columns = columns
        self._file = files.open_binary(path)
        try:
            # Small buffers, not whole column chunks: a chunk may be larger than memory.
            self._parquet = pq.ParquetFile(
                self._file,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            )
            found = self._parquet.schema_arrow
            for name in filter(None, (columns.image, columns.label)):
                if name not in found.names:
                    raise ValueError(f"it has no column {name!r}, which the first file has")
            if not _is_image(found.field(columns.image).type):
                raise ValueError(f"its column {columns.image!r} holds no images")
        except BaseException:
            self._file.close()
            raise
        self.num_groups = self._parquet.num_row_groups
        self._group = -1
        self._first = 0  # First row of the window.
        self._window: Any = ()
        self._batches: Any = iter(())

    def close(self) -> None:
        self._file.close()

    def labels(self, group: int) -> list[int | str | float]:
        """Labels of all rows of a group; -1 for null or without a label column.

        A whole number stored as float, as pandas stores integers with nulls, is an int; another
        float is returned as it is, and is no valid label.
        """
        if self._columns.label is None:
            return [-1] * self._parquet.metadata.row_group(group).num_rows
        column = self._parquet.read_row_group(group, columns=[self._columns.label]).column(0)
        return [_plain_label(label) for label in column.to_pylist()]

    def missing(self, group: int) -> dict[int, str]:
        """Rows of a group without an image, with the reason."""
        if self._nulls(group) == 0:
            return {}
        reasons = {}
        rows = self._parquet.metadata.row_group(group).num_rows
        for row in range(rows):
            value = self._value(group, row)
            if _bytes_of(value) is None:
                path = value.get("path") if isinstance(value, dict) else None
                reasons[row] = (
                    f"its image is a path, {path!r}, without the bytes"
                    if path
                    else "no image: null"
                )
        return reasons

    def image(self, group: int, row: int) -> bytes | None:
        """The encoded image of one row; None for null."""
        return _bytes_of(self._value(group, row))

    def _value(self, group: int, row: int) -> Any:
        """One cell of the image column, from a window that moves forward through its group."""
        if group != self._group or row < self._first:
            self._start(group)
        while row >= self._first + len(self._window):
            self._first += len(self._window)
            self._window = next(self._batches, None)
            if self._window is None:
                self._group = -1
                raise LookupError(f"it has no row {row}")
        return self._window[row - self._first].as_py()

    def _start(self, group: int) -> None:
        if group >= self.num_groups:
            raise LookupError(f"it has no row group {group}")
        facts = self._parquet.metadata.row_group(group)
        whole = sum(chunk.total_uncompressed_size for chunk in self._chunks(group))
        batches = self._parquet.iter_batches(
            batch_size=max(1, facts.num_rows) if whole <= WHOLE_GROUP_BYTES else WINDOW_ROWS,
            row_groups=[group],
            columns=[self._columns.image],
            use_threads=False,
        )
        self._batches = (batch.column(0) for batch in batches)
        self._group, self._first, self._window = group, 0, ()

    def _chunks(self, group: int) -> list[Any]:
        """Metadata of the image column's chunks: bytes, and path if it is a struct."""
        facts = self._parquet.metadata.row_group(group)
        chunks = [facts.column(index) for index in range(facts.num_columns)]
        name = self._columns.image
        return [c for c in chunks if c.path_in_schema in (name, f"{name}.bytes", f"{name}.path")]

    def _nulls(self, group: int) -> int | None:
        """Number of null images in a group; None if the file has no such statistics."""
        for chunk in self._chunks(group):
            if not chunk.path_in_schema.endswith(".path"):
                known = chunk.statistics is not None and chunk.statistics.has_null_count
                return chunk.statistics.null_count if known else None
        return None


def _description(schema: Any) -> dict[str, Any]:
    """Hugging Face's metadata of the columns; {} if there is none or it is malformed."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        features = info["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: about for name, about in features.items() if isinstance(about, dict)}


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        return _is_image(kind.value_type)
    is_view = getattr(pa.types, "is_binary_view", lambda kind: False)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or is_view(kind)


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_label(kind.value_type)
    is_view = getattr(pa.types, "is_string_view", lambda kind: False)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _plain_label(label: Any) -> int | str | float:
    if label is None or label != label:  # null, or NaN for null
        return -1
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _bytes_of(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def _first_name(*preferences: list[str]) -> str | None:
    """The first name of the first list that has one."""
    return next((names[0] for names in preferences if names), None)
