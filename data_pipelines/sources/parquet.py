"""`parquet:GLOB`: a Hugging Face dataset in parquet files, with a column of images or videos."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.base import (
    MAX_MEDIUM_BYTES,
    Item,
    Locator,
    Source,
    SourceError,
    printable,
)
from data_pipelines.sources.file_pool import FilePool
from data_pipelines.sources.labels import class_names
from data_pipelines.sources.table import Columns, Table, damage, find_columns, read_schema

_MAX_OPEN = 4


class ParquetSource(Source):
    """The rows of parquet files, sorted by the paths of the files, then in row order.

    * The image (or video) column is the one that Hugging Face's metadata in the schema names; else
      a column of encoded bytes, or of {bytes, path}, with a usual name; else the only such column.
      The label column is the ClassLabel, else a column of integers or strings with a usual name.
    * Rows whose image is null, or a path without bytes, are rejected, and so is the rest of a
      damaged file. A null label means no label (-1).
    * Keys are `FILE/ROW`, where FILE is the path relative to the literal folder of GLOB.

    Reads within a row group are cheap; a read from another row group decodes it. Read in the order
    of the listing where possible. Memory holds a window of rows for each of a few files.
    """

    scheme = "parquet"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        super().__init__(argument, kind)
        folder = files.literal_folder(argument)
        self._paths = {
            printable(files.relative(path, folder)): path
            for path in files.matching_files(argument, example="parquet:/data/train-*.parquet")
        }
        self._columns = self._find_columns()
        self._names = self._columns.label_names
        self._tables = FilePool(lambda path: Table(path, self._columns), max_open=_MAX_OPEN)

    @property
    def label_names(self) -> tuple[str, ...]:
        """From the dataset's metadata; without it, reads the label column."""
        if self._names is None:
            labels = (label for name in self._paths for label in self._labels_of(name))
            self._names = class_names(labels, self.spec)
        return self._names

    def _list(self) -> Iterator[Item]:
        names = self.label_names
        numbers: dict[int | str, int] = {-1: -1}
        for number, class_name in enumerate(names):
            numbers[number] = numbers[class_name] = number
        for name in self._paths:
            row = 0
            try:
                for group in range(self._groups(name)):
                    labels, missing = self._rows(name, group)
                    for index, label in enumerate(labels):
                        key = f"{name}/{row:08d}"
                        row += 1
                        if index in missing:
                            self._reject(key, missing[index])
                        elif label not in numbers:
                            self._reject(
                                key, f"its label is {label!r}, expected one of {len(names)}"
                            )
                        else:
                            yield Item(key, (name, group, index), numbers[label])
            except damage() as error:
                self._reject(name, f"damaged after {row} rows: {files.why(error)}")

    def read(self, locator: Locator) -> bytes:
        match locator:
            case [str(name), int(group), int(row)] if name in self._paths and min(group, row) >= 0:
                pass
            case _:
                raise SourceError(f"{locator!r} is not the locator of a row of {self.spec}")
        where = f"row {row} of row group {group} of {name}"
        try:
            with self._tables.borrow(self._paths[name]) as table:
                image = table.image(group, row)
        except damage() as error:
            raise SourceError(f"{where} cannot be read: {files.why(error)}") from error
        if image is None:
            raise SourceError(f"{where} holds no {self.kind}")
        if len(image) > MAX_MEDIUM_BYTES:
            raise SourceError(f"{where} has {len(image)} bytes: too large for one {self.kind}")
        return image

    def unit(self, item: Item) -> str:
        """The row group, which parquet decodes as a whole."""
        assert isinstance(item.locator, tuple | list)
        name, group, _ = item.locator
        return f"{name}/{group}"

    def _groups(self, name: str) -> int:
        with self._tables.borrow(self._paths[name]) as table:
            return table.num_groups

    def _rows(self, name: str, group: int) -> tuple[list[int | str], dict[int, str]]:
        """The labels of a row group and, by row, the reasons why images are missing."""
        with self._tables.borrow(self._paths[name]) as table:
            return table.labels(group), table.missing(group)

    def _labels_of(self, name: str) -> Iterator[int | str]:
        """Labels of one file up to its damage, which `_list` reports."""
        try:
            for group in range(self._groups(name)):
                with self._tables.borrow(self._paths[name]) as table:
                    labels = table.labels(group)
                yield from labels
        except damage():
            return

    def _find_columns(self) -> Columns:
        """The columns of the first readable file. Raises SourceError if there is none."""
        errors = []
        for name, path in self._paths.items():
            try:
                schema = read_schema(path)
            except damage() as error:
                errors.append(f"{name}: {files.why(error)}")
                continue
            return find_columns(schema, self.spec, self.kind)
        raise SourceError(f"{self.spec} holds no readable parquet file ({errors[0]})")
