"""Tables of tiles, one file for each kind of chip, as JSON.

A row says for which calls of which implementation it is, its tiles, and where they were measured.
Calls are told apart by classes: each size is rounded up to a power of two. A user's own table,
`~/.cache/jscale/tiles/<chip>.json`, goes before the one that is shipped; `jscale bench kernels
--tune` writes both. JSCALE_TILES names another folder for it.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jscale.errors import ConfigError

SHIPPED = Path(__file__).parent / "shipped"

Class = tuple[tuple[str, int | str], ...]  # (name, value), in the order of the names


@dataclass(frozen=True)
class Row:
    """Tiles for a class of calls of one implementation, as plain data.

    Attributes:
        operation: such as "attention".
        implementation: such as "xla".
        of: the class of calls, as `class_of` gives it.
        tiles: the tiles, as `Tunable.plain` gives them.
        measured: where and how; for people.
    """

    operation: str
    implementation: str
    of: Mapping[str, int | str]
    tiles: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, Class]:
        """What no two rows of a table share."""
        return self.operation, self.implementation, tuple(sorted(self.of.items()))


class Found(NamedTuple):
    """A row, and the file that it is from."""

    row: Row
    path: Path


def class_of(sizes: Mapping[str, int | str]) -> dict[str, int | str]:
    """Each number rounded up to a power of two; words as they are.

    >>> class_of({"queries": 1100, "head": 64, "dtype": "float32"})
    {'queries': 2048, 'head': 64, 'dtype': 'float32'}
    """
    up = lambda x: x if isinstance(x, str) or x < 1 else 1 << (x - 1).bit_length()
    return {name: up(x) for name, x in sizes.items()}


def file_name(kind: str) -> str:
    """The name of a chip's table, or of its results.

    >>> file_name("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def shipped(kind: str) -> Path:
    """The table that comes with jscale, for JAX's name of a chip."""
    return SHIPPED / f"{file_name(kind)}.json"


def own(kind: str) -> Path | None:
    """The user's own table; None for a user without a home."""
    named = os.environ.get("JSCALE_TILES")
    try:
        folder = Path(named) if named else Path.home() / ".cache" / "jscale" / "tiles"
    except RuntimeError:
        return None
    return folder / f"{file_name(kind)}.json"


def find(operation: str, implementation: str, kind: str, sizes: Mapping[str, Any]) -> Found | None:
    """The row for a call on a chip, the user's own before the shipped one; None without one.

    Raises:
        ConfigError: a table that cannot be read.
    """
    key = operation, implementation, tuple(sorted(class_of(sizes).items()))
    for path in (own(kind), shipped(kind)):
        row = None if path is None else read(path).get(key)
        if path is not None and row is not None:
            return Found(row, path)
    return None


def read(path: Path) -> Mapping[tuple[str, str, Class], Row]:
    """The rows of a table by what they are for; none where there is no such file.

    Raises:
        ConfigError: a file that is no table, with the row that is wrong.
    """
    try:
        stamp = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"the table of tiles {path} cannot be read: {error.strerror}") from error
    return _read(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)  # asked for in every trace
def _read(path: Path, changed: int, size: int) -> Mapping[tuple[str, str, Class], Row]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the table of tiles {path} cannot be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        raise ConfigError(f"the table of tiles {path} must be an object with a list of 'rows'")
    rows: dict[tuple[str, str, Class], Row] = {}
    for number, given in enumerate(data["rows"], 1):
        row = _row(given, f"row {number} of the table of tiles {path}")
        if row.key in rows:
            raise ConfigError(f"row {number} of the table of tiles {path} is there twice")
        rows[row.key] = row
    return rows


FIELDS = {"operation": str, "implementation": str, "of": dict, "tiles": dict, "measured": dict}


def _row(given: Any, where: str) -> Row:
    if not isinstance(given, dict) or set(given) - {"measured"} != set(FIELDS) - {"measured"}:
        raise ConfigError(f"{where} must have just the fields {', '.join(FIELDS)}")
    for name, value in given.items():
        if not isinstance(value, FIELDS[name]):
            kind = "an object" if FIELDS[name] is dict else "a word"
            raise ConfigError(f"{where}: {name!r} must be {kind}")
    for name, value in given["of"].items():
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ConfigError(f"{where}: 'of.{name}' must be a whole number or a word")
    if class_of(given["of"]) != given["of"]:
        raise ConfigError(f"{where}: the sizes in 'of' must be powers of two")
    return Row(**given)


def write(path: Path, kind: str, row: Row) -> None:
    """Add a row to a table, in the place of one for the same calls; the file is replaced at once.

    Raises:
        ConfigError: what is there is no table, or the file cannot be written.
    """
    rows = {**read(path), row.key: row}
    data = {"chip": kind, "rows": [asdict(rows[key]) for key in sorted(rows, key=str)]}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ConfigError(
            f"the table of tiles {path} cannot be written: {error.strerror}"
        ) from error
