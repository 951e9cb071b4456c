"""JSON lines, plain or compressed: bad lines are quarantined up to a small share."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from jscale.data.source import (
    Report,
    check_paths,
    digest_files,
    reading,
    require,
    resolve_files,
    total_size,
)
from jscale.errors import ConfigError, DataError, did_you_mean

T = TypeVar("T")
CHUNK = 1 << 20
HOPELESS = 1000  # bad lines after which the share so far decides, without reading to the end


@dataclass(frozen=True)
class JsonLines:
    """Files of one JSON object a line (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`) with text in `field`.

    A line that is no such object is counted and written down with its path:line; more of them than
    the share `max_bad` of all lines is an error that names the first.
    """

    paths: tuple[str, ...]  # of files, or globs
    field: str = "text"  # which holds the text
    max_bad: float = 0.0001  # share of bad lines that is put up with

    def __post_init__(self) -> None:
        check_paths(self.paths, "JsonLines")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"JsonLines: max_bad is a share from 0 to 1, not {self.max_bad}")

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the texts; raises `DataError` naming the first bad line if too many."""
        return each_line(self.paths, self.max_bad, report, lambda found: text_in(found, self.field))

    def digest(self) -> str:
        """A key of the files' bytes, the field and the share."""
        settings = {"kind": "JsonLines", "field": self.field, "max_bad": self.max_bad}
        files = resolve_files(self.paths)
        return digest_files(files, settings | {"formats": [path.suffix for path in files]})

    def size(self) -> int:
        """Bytes of the files as they lie on disk."""
        return total_size(resolve_files(self.paths))


def each_line(
    paths: tuple[str, ...], max_bad: float, report: Report, take: Callable[[dict[str, Any]], T]
) -> Iterator[T]:
    """Stream what is taken from the object of each line; a `ValueError` makes it a bad one.

    Raises `DataError` naming the first bad line if their share is above `max_bad`.
    """
    lines = 0
    for path in resolve_files(paths):
        for number, line in enumerate(_read_lines(path, report), 1):
            if not line.strip():
                report.empty += 1
                continue
            lines += 1
            try:
                taken = take(_object(line))
            except (ValueError, RecursionError) as error:
                report.reject(f"{path}:{number}", _reason(error))
                if report.bad > HOPELESS:
                    _check(report, lines, max_bad)
                continue
            yield taken
    _check(report, lines, max_bad)


def _object(line: bytes) -> dict[str, Any]:
    # Decoded first: json.loads guesses UTF-16 from NUL bytes.
    value = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is wanted, found {type(value).__name__}")
    return value


def text_in(found: dict[str, Any], field: str) -> str:
    """The text in a field of an object; raises ValueError where there is none."""
    if field not in found:
        raise ValueError(f"no field {field!r}; {did_you_mean(field, found)}")
    text = found[field]
    if not isinstance(text, str):
        raise ValueError(f"field {field!r} holds {type(text).__name__}, not text")
    text.encode()  # a lone surrogate is valid JSON and no Unicode
    return text


def _check(report: Report, lines: int, max_bad: float) -> None:
    if report.bad > max_bad * lines:
        raise DataError(
            f"{report.bad} of {lines} lines are bad, more than the share {max_bad:g} that "
            f"max_bad allows; the first is {report.bad_lines[0]}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 (byte 0x{error.object[error.start]:02x})"
    if isinstance(error, UnicodeEncodeError):
        return "a lone surrogate, which is no Unicode text"
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    return str(error)


def _read_lines(path: Path, report: Report) -> Iterator[bytes]:
    """The lines of a file, decompressed by its suffix; `report.read` follows its position."""
    before, number = report.read, 1
    with reading(path), open(path, "rb") as file:
        try:
            for line in _decompressed(path, file):
                report.read = before + file.tell()
                yield line
                number += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}:{number}: the compressed file is damaged: {error}") from error
    report.read = before + os.path.getsize(path)


def _decompressed(path: Path, file: IO[bytes]) -> Iterable[bytes]:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if path.suffix in (".zst", ".zstd"):
        return _split_lines(_zstd_chunks(file))
    return file


def _zstd_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame, because zstandard's own readers take a truncated file for a whole one."""
    zstandard = require("zstandard", "a .zst file")
    frame = None
    while chunk := file.read(CHUNK):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join((*pending, line))
            pending.clear()
        pending.append(rest)
    if any(pending):
        yield b"".join(pending)
