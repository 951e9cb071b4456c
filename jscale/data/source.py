"""What a source of documents promises, and what is written down while it is read.

A source is a frozen dataclass: where the text is and how to take documents out of it. Reading is
streaming; what was skipped is counted in a `Report`, never dropped in silence.
"""

import glob
import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from jscale.errors import ConfigError, DataError
from jscale.signals import aside

KEPT = 1000  # bad lines written down one by one; beyond these they are only counted


@dataclass
class Report:
    """What happened while documents were read: counts, and `path:line: reason` of bad lines."""

    documents: int = 0
    empty: int = 0
    bad: int = 0
    bytes: int = 0  # of text kept, as UTF-8
    read: int = 0  # bytes of input behind us, for progress
    bad_lines: list[str] = field(default_factory=list)

    def reject(self, where: str, reason: str) -> None:
        """Count one bad line, and quarantine its place and reason."""
        self.bad += 1
        if len(self.bad_lines) < KEPT:
            self.bad_lines.append(f"{where}: {reason}")


@runtime_checkable
class Source(Protocol):
    """A collection of documents: readable any number of times, always in the same order."""

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the documents; raises `DataError` where the input cannot be used."""
        ...

    def digest(self) -> str:
        """A key of the content and of how it is read: equal keys mean equal documents."""
        ...

    def size(self) -> int:
        """Bytes of input, for progress."""
        ...


def documents_with_text(source: Source, report: Report) -> Iterator[str]:
    """The documents of a source without the blank ones, which are counted in the report."""
    for text in source.documents(report):
        if not text or text.isspace():
            report.empty += 1
            continue
        report.documents += 1
        yield text


def resolve_files(patterns: tuple[str, ...]) -> tuple[Path, ...]:
    """The files that the paths and globs name, each once: patterns in their order, files sorted.

    Raises `DataError` for a file that is missing and for a glob that matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(_match(pattern)))
    return tuple(found)


def _match(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError(f"{pattern!r} is a folder; name its files, such as '{pattern}/**/*'")
    if path.exists():
        return [path]
    if not glob.has_magic(pattern):
        raise DataError(f"the file {pattern!r} does not exist")
    files = [f for f in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(f)]
    if not files:
        raise DataError(f"no file matches {pattern!r}")
    return [Path(f) for f in files]


def check_paths(paths: tuple[str, ...], kind: str) -> None:
    """Refuse a bare string (a tuple of its letters) and an empty tuple."""
    if isinstance(paths, str):
        raise ConfigError(f"{kind} takes a tuple of paths: write {kind}(({paths!r},))")
    if not paths:
        raise ConfigError(f"{kind} needs at least one path or glob")


def digest_files(files: Iterable[Path], settings: Mapping[str, object]) -> str:
    """A key of the files' bytes, in order, and of the settings they are read with.

    Names and places are left out on purpose: a corpus that is moved keeps its key.
    """

    def digests() -> list[str]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(digest_file, files))

    # Aside: leaving the pool waits for its threads, and a file's disk may be far away or dead.
    return digest_values(dict(settings), aside(digests))


def digest_file(path: Path) -> str:
    """blake2b of the file's bytes (about 1 GB/s on one core); raises `DataError`."""
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_values(*values: object) -> str:
    """A 32-letter key of plain data.

    >>> digest_values("a", 1) == digest_values("a", 1), digest_values("a", 1) == digest_values("a1")
    (True, False)
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def total_size(files: Iterable[Path]) -> int:
    """Bytes of the files together."""
    total = 0
    for path in files:
        with reading(path):
            total += path.stat().st_size
    return total


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what the file system says into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def decode_utf8(data: bytes, path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark; raises `DataError` with path:line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise DataError(
            f"{path}:{line}: invalid UTF-8 (byte 0x{byte:02x}): {error.reason}"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def require(module: str, kind: str) -> ModuleType:
    """Import an optional package, or say which extra holds it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(
            f'{kind} needs the package {package}: pip install "jscale[data]"'
        ) from error
