"""metrics.jsonl: one JSON object a line, safe against crashes, one value for a name at a step.

A line is `{"step": 10, "time": 1760000000.0, "values": {"train/loss": 2.5}}`, or holds `"text"` in
the place of `"values"`. Numbers that JSON lacks are the strings "NaN", "Infinity", "-Infinity",
which `float` reads.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jscale.errors import DataError

LARGEST = 2**53  # of steps and seconds: beyond, a float skips some
RECENT = 64  # steps whose names are remembered; evaluations lag behind training by fewer


class Line(NamedTuple):
    """One line: seconds since 1970, and numbers or texts by name."""

    step: int
    time: float
    values: dict[str, float]
    text: dict[str, str]


@dataclass(frozen=True)
class Jsonl:
    """Write `metrics.jsonl` into the run's folder."""

    def open(self, folder: Path, step: int) -> "JsonlWriter":
        """Continue the file after `step`."""
        return JsonlWriter(folder / "metrics.jsonl", step)


class JsonlWriter:
    """Appends whole lines, each with a single write.

    Opening cuts the file back to `step`: later lines, and lines that a crash tore, move to the
    file beside it with the suffix `.dropped`. When a name is written again at the same step, as by
    an evaluation repeated after a restart, the first value stands.
    """

    def __init__(self, path: Path, step: int, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._names: dict[int, set[str]] = {}
        for line in cut_back(path, step):
            self._fresh(line.step, {**line.values, **line.text})
        self._file = path.open("ab", buffering=0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line of numbers."""
        fresh = self._fresh(step, values)
        if fresh:
            self._append(step, "values", {name: json_number(fresh[name]) for name in fresh})

    def text(self, step: int, name: str, text: str) -> None:
        """Append a line with a text."""
        fresh = self._fresh(step, {name: text})
        if fresh:
            self._append(step, "text", fresh)

    def close(self) -> None:
        """Bring the file to the disk and close it."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _append(self, step: int, key: str, content: Mapping[str, Any]) -> None:
        line = {"step": step, "time": round(self._clock(), 3), key: content}
        self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())

    def _fresh(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values whose names are new at this step."""
        names = self._names.setdefault(step, set())
        fresh = {name: value for name, value in values.items() if name not in names}
        names.update(fresh)
        if len(self._names) > RECENT:
            del self._names[min(self._names)]
        return fresh


def cut_back(path: Path, step: int) -> list[Line]:
    """Keep only the whole lines up to `step`; move all others aside; return the kept ones.

    The file is replaced in one move, so that a crash while cutting leaves the old or the new one.
    """
    if not path.exists():
        return []
    kept: list[tuple[bytes, Line]] = []
    dropped: list[bytes] = []
    for raw in path.read_bytes().splitlines(keepends=True):
        line = _parse(raw)
        if line is not None and line.step <= step:
            kept.append((raw, line))
        else:
            dropped.append(raw if raw.endswith(b"\n") else raw + b"\n")
    if dropped:
        with path.with_name(path.name + ".dropped").open("ab") as aside:
            aside.writelines(dropped)
        fresh = path.with_name(path.name + ".new")
        with fresh.open("wb") as file:
            file.writelines(raw for raw, _ in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    return [line for _, line in kept]


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a metrics file, in order; a last line that is still being written is left out.

    Raises:
        DataError: a line in the middle cannot be read.
    """
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        line = _parse(raw)
        if line is not None:
            yield line
        elif raw.endswith(b"\n"):
            raise DataError(f"{path}, line {number} is not a line of metrics: {raw[:80]!r}")


def _parse(raw: bytes) -> Line | None:
    """One line, or None when it is torn or foreign."""
    if not raw.endswith(b"\n"):
        return None
    try:
        found = json.loads(raw)
        values = {name: float(value) for name, value in found.get("values", {}).items()}
        step, moment = int(found["step"]), float(found["time"])
        possible = 0 <= step < LARGEST and abs(moment) < LARGEST
        return Line(step, moment, values, dict(found.get("text", {}))) if possible else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def json_number(value: float | int) -> float | str:
    """The value as JSON can say it; `float` reads all of them.

    >>> json_number(0.5), json_number(float("-inf"))
    (0.5, '-Infinity')
    """
    value = float(value)
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def json_value(value: Any) -> Any:
    """Plain data with every number in it as `json_number` says it.

    >>> json_value({"a": [0.5, float("nan")], "b": ("c", None)})
    {'a': [0.5, 'NaN'], 'b': ['c', None]}
    """
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Mapping):
        return {str(name): json_value(one) for name, one in value.items()}
    return [json_value(one) for one in value] if isinstance(value, list | tuple) else value
