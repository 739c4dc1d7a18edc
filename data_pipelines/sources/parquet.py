"""`parquet:GLOB`: a Hugging Face dataset in parquet files, with a column of images or videos."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipelines.sources import files
from data_pipelines.sources.base import (
    MAX_MEDIUM_BYTES,
    Item,
    Kind,
    Locator,
    Source,
    SourceError,
    printable,
)
from data_pipelines.sources.labels import class_names
from data_pipelines.sources.opened import Opened
from data_pipelines.sources.table import Columns, Table, damage, find_columns, read_schema

_MAX_OPEN = 4


class ParquetSource(Source):
    """The rows of one or many parquet files, in the order of the files' paths and of the rows.

    * The image (or video) is the column that the dataset's own description (Hugging Face's metadata
      in the schema) calls one; else a column of encoded bytes, or of {bytes, path}, with a usual
      name; else the only such column. The label likewise: the ClassLabel, else a column of
      integers or names under a usual name.
    * Rows whose image is null, or a path without bytes, are set aside and named, and so is a file
      from where it is damaged. A null label is no label (-1).
    * Keys are `FILE/ROW`, FILE being the path below the folder that GLOB spells out.

    Reads within a row group are cheap; a read from another one decodes that. So read in the order
    of the listing where you can. Held in memory: a window of rows in each of a few files.
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
        self._tables = Opened(lambda path: Table(path, self._columns), most=_MAX_OPEN)

    @property
    def label_names(self) -> tuple[str, ...]:
        """From the dataset's description; without one, asking for them reads the label column."""
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
                    for place, label in enumerate(labels):
                        key = f"{name}/{row:08d}"
                        row += 1
                        if place in missing:
                            self._reject(key, missing[place])
                        elif label not in numbers:
                            self._reject(
                                key, f"its label is {label!r}, expected one of {len(names)}"
                            )
                        else:
                            yield Item(key, (name, group, place), numbers[label])
            except damage() as error:
                self._reject(name, f"damaged after {row} rows: {files.why(error)}")

    def read(self, locator: Locator) -> bytes:
        match locator:
            case [str(name), int(group), int(place)] if (
                name in self._paths and min(group, place) >= 0
            ):
                pass
            case _:
                raise SourceError(f"{locator!r} is not the place of a row in {self.spec}")
        where = f"row {place} of row group {group} of {name}"
        try:
            with self._tables.borrow(self._paths[name]) as table:
                image = table.image(group, place)
        except damage() as error:
            raise SourceError(f"{where} cannot be read: {files.why(error)}") from error
        if image is None:
            raise SourceError(f"{where} holds no {self.kind}")
        if len(image) > MAX_MEDIUM_BYTES:
            raise SourceError(f"{where} has {len(image)} bytes: too large for one {self.kind}")
        return image

    def unit(self, item: Item) -> str:
        """A row group: parquet decodes it whole."""
        assert isinstance(item.locator, tuple | list)
        name, group, _ = item.locator
        return f"{name}/{group}"

    def _groups(self, name: str) -> int:
        with self._tables.borrow(self._paths[name]) as table:
            return table.num_groups

    def _rows(self, name: str, group: int) -> tuple[list[int | str], dict[int, str]]:
        """The labels of a row group and, by row, why some of its images are missing."""
        with self._tables.borrow(self._paths[name]) as table:
            return table.labels(group), table.missing(group)

    def _labels_of(self, name: str) -> Iterator[int | str]:
        """Labels of one file up to its damage, which is reported when the images are listed."""
        try:
            for group in range(self._groups(name)):
                with self._tables.borrow(self._paths[name]) as table:
                    labels = table.labels(group)
                yield from labels
        except damage():
            return

    def _find_columns(self) -> Columns:
        """Of the first file that can be read; the others must agree. Raises SourceError."""
        errors = []
        for name, path in self._paths.items():
            try:
                schema = read_schema(path)
            except damage() as error:
                errors.append(f"{name}: {files.why(error)}")
                continue
            return find_columns(schema, self.spec, self.kind)
        raise SourceError(f"{self.spec} holds no readable parquet file ({errors[0]})")
