"""Sources of plain text: files, the standard library of the running Python, strings in memory."""

import os
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jscale.data.source import (
    Report,
    check_paths,
    decode_utf8,
    digest_files,
    digest_values,
    reading,
    resolve_files,
    total_size,
)
from jscale.errors import ConfigError, DataError

# Folders that are not the library proper: tests, other people's packages, retired tools, tables.
NOISE = frozenset(
    "test tests idle_test site-packages dist-packages idlelib lib2to3 turtledemo pydoc_data "
    "distutils ensurepip encodings msilib __pycache__ __phello__".split()
)


@dataclass(frozen=True)
class TextFiles:
    """UTF-8 text files: one file is one document, or several that `separator` divides."""

    paths: tuple[str, ...]  # of files, or globs
    separator: str | None = None  # between documents of a file; None: a file is one

    def __post_init__(self) -> None:
        check_paths(self.paths, "TextFiles")
        if self.separator == "":
            raise ConfigError("TextFiles: separator is empty; leave it out for whole files")

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the documents, one file in memory at a time; line endings are kept."""
        for path in resolve_files(self.paths):
            with reading(path):
                data = path.read_bytes()
            text = decode_utf8(data, path)
            report.read += len(data)
            yield from text.split(self.separator) if self.separator else (text,)

    def digest(self) -> str:
        """A key of the files' bytes and the separator."""
        settings = {"kind": "TextFiles", "separator": self.separator}
        return digest_files(resolve_files(self.paths), settings)

    def size(self) -> int:
        """Bytes of the files."""
        return total_size(resolve_files(self.paths))


@dataclass(frozen=True)
class StandardLibrary:
    """The sources of the running Python's own standard library: 8 MB of text, on every machine."""

    def files(self) -> list[Path]:
        """The library's Python files without tests, tables and tools; raises `DataError`."""
        root, files = sysconfig.get_path("stdlib"), []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not _is_noise(name)]
            files += [Path(folder, name) for name in names if name.endswith(".py")]
        if not files:
            raise DataError(f"this Python has no library sources under {root}")
        return sorted(files)

    def documents(self, report: Report) -> Iterator[str]:
        """Stream the library, one file a document."""
        for path in self.files():
            with reading(path), tokenize.open(path) as file:  # heeds "coding:" comments
                text = file.read()
            report.read += path.stat().st_size
            yield text

    def digest(self) -> str:
        """A key of the files' bytes: another Python release is another corpus."""
        return digest_files(self.files(), {"kind": "StandardLibrary"})

    def size(self) -> int:
        """Bytes of the files."""
        return total_size(self.files())


def _is_noise(folder: str) -> bool:
    return folder in NOISE or folder.startswith("config-")


@dataclass(frozen=True)
class Texts:
    """Documents in memory, for tests and notebooks."""

    texts: tuple[str, ...]  # one document each

    def documents(self, report: Report) -> Iterator[str]:
        """The strings, as they are; raises `DataError` for one that is not Unicode text."""
        for number, text in enumerate(self.texts):
            try:
                report.read += len(text.encode())
            except UnicodeEncodeError as error:
                raise DataError(f"Texts: text {number} has a lone surrogate: {error}") from error
            yield text

    def digest(self) -> str:
        """A key of the strings."""
        return digest_values("Texts", self.texts)

    def size(self) -> int:
        """Bytes of the strings as UTF-8."""
        return sum(len(text.encode(errors="replace")) for text in self.texts)
