"""Sources of records: Parquet, ArrayRecord, and folders of Hugging Face `datasets`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jscale.data.source import (
    Report,
    check_paths,
    digest_files,
    reading,
    require,
    resolve_files,
    total_size,
)
from jscale.errors import DataError, did_you_mean

RECORDS = 1024  # read at a time


@dataclass(frozen=True)
class Parquet:
    """Parquet files with one document a row in `column`; a null is an empty document."""

    paths: tuple[str, ...]  # of files, or globs
    column: str = "text"  # which holds the text

    def __post_init__(self) -> None:
        check_paths(self.paths, "Parquet")

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the column; raises `DataError` for a damaged file and an unknown column."""
        arrow = require("pyarrow", "Parquet")
        parquet = require("pyarrow.parquet", "Parquet")
        for path in resolve_files(self.paths):
            before, size = report.read, path.stat().st_size
            try:
                with parquet.ParquetFile(path) as file:
                    rows = max(1, file.metadata.num_rows)
                    _check_column(file.schema_arrow, self.column, str(path))
                    seen = 0
                    for batch in file.iter_batches(RECORDS, columns=[self.column]):
                        yield from _texts(batch.column(0), f"{path}: rows {seen} and on")
                        seen += batch.num_rows
                        report.read = before + size * seen // rows
            except DataError:
                raise
            except (arrow.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{path} is not a whole Parquet file: {error}") from error

    def digest(self) -> str:
        """A key of the files' bytes and the column."""
        settings = {"kind": "Parquet", "column": self.column}
        return digest_files(resolve_files(self.paths), settings)

    def size(self) -> int:
        """Bytes of the files."""
        return total_size(resolve_files(self.paths))


def _texts(column: Any, where: str) -> list[str]:
    """The column's values; Arrow does not check that its strings are UTF-8."""
    try:
        return [text or "" for text in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: invalid UTF-8: {error}") from error


def _check_column(schema: Any, column: str, where: str) -> None:
    types = require("pyarrow.types", "Parquet")
    if column not in schema.names:
        raise DataError(f"{where} has no column {column!r}; {did_you_mean(column, schema.names)}")
    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(f"{where}: column {column!r} holds {kind}, not text")


@dataclass(frozen=True)
class ArrayRecord:
    """ArrayRecord files whose records are UTF-8 text."""

    paths: tuple[str, ...]  # of files, or globs

    def __post_init__(self) -> None:
        check_paths(self.paths, "ArrayRecord")

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the records; raises `DataError` for a damaged file and invalid UTF-8."""
        for path in resolve_files(self.paths):
            before, size = report.read, path.stat().st_size
            for number, (record, share) in enumerate(_records(path)):
                try:
                    yield record.decode()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}: record {number} is invalid UTF-8: {error}") from error
                report.read = before + int(size * share)

    def digest(self) -> str:
        """A key of the files' bytes."""
        return digest_files(resolve_files(self.paths), {"kind": "ArrayRecord"})

    def size(self) -> int:
        """Bytes of the files."""
        return total_size(resolve_files(self.paths))


def _records(path: Path) -> Iterator[tuple[bytes, float]]:
    """Each record, with the share of the file that is behind it."""
    array_record = require("array_record.python.array_record_module", "ArrayRecord")
    with reading(path), open(path, "rb"):
        pass  # a file that cannot be opened is named in our words
    reader = array_record.ArrayRecordReader(str(path))
    try:
        # A damaged footer leaves a reader without records that only says so when it is closed.
        count = reader.num_records() if reader.ok() else 0
        for start in range(0, count, RECORDS):
            stop = min(start + RECORDS, count)
            yield from ((record, stop / count) for record in reader.read(start, stop))
        reader.close()
    except (RuntimeError, IndexError) as error:
        reason = str(error) or "truncated"
        raise DataError(f"{path} is not a whole ArrayRecord file: {reason}") from error


@dataclass(frozen=True)
class HuggingFace:
    """A folder written by `datasets.Dataset.save_to_disk`, or one split of a dictionary of them."""

    path: str  # of the folder
    split: str | None = None  # of a dictionary of several; None where there is one
    column: str = "text"  # which holds the text

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the column; raises `DataError` for damage, an unknown split or column."""
        folder = self.folder()
        datasets = require("datasets", "HuggingFace")
        arrow = require("pyarrow", "HuggingFace")
        try:
            _check_index(folder)
            table = datasets.load_from_disk(str(folder)).with_format("arrow")
            _check_column(table.features.arrow_schema, self.column, str(folder))
            before, size, seen = report.read, self.size(), 0
            for batch in table.select_columns([self.column]).iter(RECORDS):
                yield from _texts(batch.column(0), f"{folder}: rows {seen} and on")
                seen += batch.num_rows
                report.read = before + size * seen // max(1, len(table))
        except DataError:
            raise
        except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is not a whole datasets folder: {error}") from error

    def folder(self) -> Path:
        """The folder of the one dataset that is meant; raises `DataError`."""
        root = Path(self.path).expanduser()
        splits = _splits(root)
        if splits is None:
            if self.split is not None:
                raise DataError(
                    f"{root} is a single dataset, so split={self.split!r} has no meaning"
                )
            if not (root / "state.json").is_file():
                raise DataError(f"{root} is no folder written by datasets.save_to_disk")
            return root
        if self.split is None:
            raise DataError(f"{root} has several splits: set split to one of {', '.join(splits)}")
        if self.split not in splits:
            raise DataError(
                f"{root} has no split {self.split!r}; {did_you_mean(self.split, splits)}"
            )
        return root / self.split

    def digest(self) -> str:
        """A key of the folder's bytes and the column."""
        return digest_files(self.files(), {"kind": "HuggingFace", "column": self.column})

    def files(self) -> list[Path]:
        """The files of the folder, sorted."""
        return sorted(path for path in self.folder().iterdir() if path.is_file())

    def size(self) -> int:
        """Bytes of the folder."""
        return total_size(self.files())


def _check_index(folder: Path) -> None:
    """The index of a datasets folder may name files of that folder only."""
    index = folder / "state.json"
    for entry in json.loads(index.read_bytes())["_data_files"]:
        name = entry["filename"]
        if Path(name).name != name:
            raise DataError(f"{index} names a file outside: {name!r}")


def _splits(root: Path) -> list[str] | None:
    """The names in `dataset_dict.json`, or None where the folder is a single dataset."""
    index = root / "dataset_dict.json"
    if not index.is_file():
        return None
    try:
        names = json.loads(index.read_bytes())["splits"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{index} is damaged: {error}") from error
    if not isinstance(names, list) or any(Path(str(name)).name != name for name in names):
        raise DataError(f"{index} is damaged: splits must be plain names")
    return names
