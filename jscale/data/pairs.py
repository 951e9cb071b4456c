"""Sources of pairs of texts: something that is given, and what is to be made of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jscale.data.jsonl import each_line, text_in
from jscale.data.source import (
    Report,
    check_paths,
    digest_files,
    digest_values,
    resolve_files,
    total_size,
)
from jscale.errors import ConfigError, DataError

Pair = tuple[str, str]  # a source and its target


@runtime_checkable
class PairSource(Protocol):
    """A collection of pairs: readable any number of times, always in the same order."""

    def pairs(self, report: Report) -> Iterator[Pair]:
        """Stream the pairs, neither text blank; raises `DataError` where they cannot be used."""
        ...

    def digest(self) -> str:
        """A key of the content and of how it is read: equal keys mean equal pairs."""
        ...

    def size(self) -> int:
        """Bytes of input, for progress."""
        ...


@dataclass(frozen=True)
class JsonPairs:
    """Files of one JSON object a line (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`) with a pair in it.

    A line that is no such object, or in which a text is blank, is counted and written down with its
    path:line; more of them than the share `max_bad` of all lines is an error that names the first.
    """

    paths: tuple[str, ...]  # of files, or globs
    source: str = "source"  # the field of what is given
    target: str = "target"  # the field of what is to be made of it
    max_bad: float = 0.0001  # share of bad lines that is put up with

    def __post_init__(self) -> None:
        check_paths(self.paths, "JsonPairs")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"JsonPairs: max_bad is a share from 0 to 1, not {self.max_bad}")
        if self.source == self.target:
            raise ConfigError(f"JsonPairs: source and target are both the field {self.source!r}")

    def pairs(self, report: Report) -> Iterator[Pair]:
        """Stream the pairs; raises `DataError` naming the first bad line if too many."""
        return each_line(self.paths, self.max_bad, report, self._pair)

    def _pair(self, found: dict[str, Any]) -> Pair:
        return written(found, self.source), written(found, self.target)

    def digest(self) -> str:
        """A key of the files' bytes, the fields and the share."""
        settings = {"kind": "JsonPairs", "fields": [self.source, self.target]}
        files = resolve_files(self.paths)
        formats = {"max_bad": self.max_bad, "formats": [path.suffix for path in files]}
        return digest_files(files, settings | formats)

    def size(self) -> int:
        """Bytes of the files as they lie on disk."""
        return total_size(resolve_files(self.paths))


def written(found: dict[str, Any], field: str) -> str:
    """The text in a field; raises ValueError where there is none, or nothing is written in it."""
    text = text_in(found, field)
    if not text or text.isspace():
        raise ValueError(f"field {field!r} is blank: a pair is a source and a target, both written")
    return text


@dataclass(frozen=True)
class Pairs:
    """Pairs in memory, for tests, notebooks and tasks that a recipe makes itself."""

    texts: tuple[tuple[str, str], ...]  # (source, target) each

    def pairs(self, report: Report) -> Iterator[Pair]:
        """The pairs, as they are; raises `DataError` for one that is blank or no Unicode."""
        for number, (source, target) in enumerate(self.texts, 1):
            for name, text in (("source", source), ("target", target)):
                if not text or text.isspace():
                    raise DataError(f"Pairs: the {name} of pair {number} is blank")
                try:
                    report.read += len(text.encode())
                except UnicodeEncodeError as error:
                    raise DataError(f"Pairs: pair {number} is no Unicode text: {error}") from error
            yield source, target

    def digest(self) -> str:
        """A key of the texts."""
        return digest_values("Pairs", self.texts)

    def size(self) -> int:
        """Bytes of the texts as UTF-8."""
        return sum(len(text.encode(errors="replace")) for pair in self.texts for text in pair)


@dataclass(frozen=True)
class InTurn:
    """The texts of pairs one by one: documents 2n and 2n + 1 are source and target of pair n."""

    of: PairSource

    def documents(self, report: Report) -> Iterator[str]:
        """Source, target, source, target, …

        Raises:
            DataError: there are none.
        """
        pair = None
        for pair in self.of.pairs(report):
            yield from pair
        if pair is None:
            raise DataError(f"data.source has no pairs: {self.of!r:.200}")

    def digest(self) -> str:
        """A key of the pairs."""
        return digest_values("InTurn", self.of.digest())

    def size(self) -> int:
        """Bytes of input."""
        return self.of.size()
