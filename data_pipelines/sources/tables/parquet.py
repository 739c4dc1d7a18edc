"""`parquet:GLOB`: a Hugging Face dataset in parquet files, with a column of images or videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.base import (
    MAX_MEDIUM_BYTES,
    Item,
    Locator,
    Source,
    SourceError,
)
from data_pipelines.sources.file_pool import FilePool
from data_pipelines.sources.labels import class_names, mixed_splits
from data_pipelines.sources.tables.table import Columns, Table, damage, find_columns, read_schema

_MAX_OPEN = 4


class ParquetSource(Source):
    """The rows of parquet files, sorted by the paths of the files, then in row order.

    * The image (or video) column is the one that Hugging Face's metadata in the schema names; else
      a column of encoded bytes, or of {bytes, path}, with a usual name; else the only such column.
      The label column is the ClassLabel, else a column of numbers or strings with a usual name.
      Of several columns, one with a usual name comes first, in any case; a warning names the
      others.
    * Class names are matched by name: files may number them in different orders. Files with and
      without class names for numbers are refused.
    * Rows whose image is null, or a path without bytes, are rejected, and so is the rest of a
      damaged file. A null label means no label (-1).
    * Keys are `FILE/ROW`, where FILE is the path relative to the literal folder of GLOB.

    Reads within a row group are cheap; a read from another row group decodes it. Read in the order
    of the listing where possible. Memory holds a window of rows for each of a few files.
    """

    scheme = "parquet"
    label_advice = "add a column named 'label' with the number or the name of each class"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        super().__init__(argument, kind)
        self._paths, self._repeated = files.distinct_files(
            argument, example="parquet:/data/train-*.parquet"
        )
        self._columns = self._find_columns()
        self._classes: _Classes | None = None
        self._tables = FilePool(lambda path: Table(path, self._columns), max_open=_MAX_OPEN)

    @property
    def label_names(self) -> tuple[str, ...]:
        """From the metadata of all files; without any, reads the label column."""
        return self._all_classes().names

    def _list(self) -> Iterator[Item]:
        for name, original in self._repeated.items():
            self._reject(name, f"a symbolic link to {original}, which is listed itself")
        classes = self._all_classes()
        for text in (*self._columns.warnings, *classes.warnings, *mixed_splits(self._paths)):
            self._warn(text)
        unlabelled, count, first = 0, 0, ""
        for name in self._paths:
            numbers = classes.numbers(name)
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
                            expected = len(classes.names)
                            self._reject(key, f"its label is {label!r}, expected one of {expected}")
                        else:
                            count += 1
                            if numbers[label] == -1:
                                unlabelled, first = unlabelled + 1, first or key
                            yield Item(key, (name, group, index), numbers[label])
            except damage() as error:
                files.raise_outage(error, self._paths[name])
                self._reject(name, f"damaged after {row} rows: {files.why(error)}")
        if 0 < unlabelled < count:
            self._warn(
                f"{unlabelled:,} of {count:,} {self.kind}s have no label (the first: {first!r})"
            )

    def read(self, locator: Locator) -> bytes:
        match locator:
            case [str(name), int(group), int(row)] if min(group, row) >= 0:
                pass
            case _:
                raise SourceError(f"{locator!r} is not the locator of a row of {self.spec}")
        if name not in self._paths:
            files.raise_missing(self.argument, name)
            raise SourceError(f"{locator!r} is not the locator of a row of {self.spec}")
        where = f"row {row} of row group {group} of {name}"
        try:
            with self._tables.borrow(self._paths[name]) as table:
                image = table.image(group, row)
        except damage() as error:
            files.raise_outage(error, self._paths[name])
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

    def _rows(self, name: str, group: int) -> tuple[list[int | str | float], dict[int, str]]:
        """The labels of a row group and, by row, the reasons why images are missing."""
        with self._tables.borrow(self._paths[name]) as table:
            return table.labels(group), table.missing(group)

    def _labels_of(self, name: str) -> Iterator[int | str]:
        """Labels of one file up to its damage, which `_list` reports."""
        try:
            for group in range(self._groups(name)):
                with self._tables.borrow(self._paths[name]) as table:
                    labels = table.labels(group)
                yield from (label for label in labels if not isinstance(label, float))
        except damage() as error:
            files.raise_outage(error, self._paths[name])

    def _find_columns(self) -> Columns:
        """The columns of the first readable file. Raises SourceError if there is none."""
        errors = []
        for name in self._paths:
            try:
                return self._columns_of(name)
            except damage() as error:
                if isinstance(error, SourceError):
                    raise
                files.raise_outage(error, self._paths[name])
                errors.append(f"{name}: {files.why(error)}")
        raise SourceError(f"{self.spec} holds no readable parquet file ({errors[0]})")

    def _columns_of(self, name: str) -> Columns:
        return find_columns(read_schema(self._paths[name]), self.spec, self.kind)

    def _all_classes(self) -> _Classes:
        if self._classes is None:
            self._classes = self._find_classes()
        return self._classes

    def _find_classes(self) -> _Classes:
        """Joins the class names of all files. Raises SourceError if they cannot be joined."""
        by_file: dict[str, tuple[str, ...]] = {}
        without = []
        for name in self._paths:
            try:
                columns = self._columns_of(name)
            except damage() as error:
                files.raise_outage(error, self._paths[name])
                continue  # `_list` reports it
            if columns.label != self._columns.label:
                continue  # `_list` rejects it, or the source has no labels
            if columns.label_names is None:
                without.append(name)
            else:
                by_file[name] = columns.label_names
        if without and not any(by_file.values()):
            found = (label for name in self._paths for label in self._labels_of(name))
            return _Classes(class_names(found, self.spec), {}, ())
        numbered = next((name for name in without if self._has_numbers(name)), None)
        if numbered is not None:
            named = next(name for name in by_file if by_file[name])
            raise SourceError(
                f"{named} names its classes and {numbered} only numbers them, so equal labels may "
                "differ in meaning: read them as two sources"
            )
        names = dict.fromkeys(class_name for names in by_file.values() for class_name in names)
        for name in without:
            names.update(dict.fromkeys(sorted({str(x) for x in self._labels_of(name) if x != -1})))
        first = next(iter(by_file.values()), ())
        other = next((name for name, names in by_file.items() if names != first), None)
        warnings: tuple[str, ...] = ()
        if other is not None:
            warnings = (
                f"{other} names other classes than the first file, or in another order: labels are "
                "matched by name",
            )
        return _Classes(tuple(names), by_file, warnings)

    def _has_numbers(self, name: str) -> bool:
        return any(not isinstance(label, str) and label != -1 for label in self._labels_of(name))


class _Classes(NamedTuple):
    """The classes of all files.

    Attributes:
      names: by label.
      by_file: the names by which a file numbers its classes; absent: the file's labels are those
        of `names`.
      warnings: sentences about files that disagree.
    """

    names: tuple[str, ...]
    by_file: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]

    def numbers(self, file: str) -> dict[int | str | float, int]:
        """Label as stored in a file -> label of the source."""
        joined = {name: number for number, name in enumerate(self.names)}
        stored: dict[int | str | float, int] = {-1: -1}
        stored.update(joined.items())
        for number, name in enumerate(self.by_file.get(file, self.names)):
            stored[number] = joined[name]
        return stored
