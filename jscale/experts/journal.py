"""experts.jsonl: what each layer's experts had to do, a line for each step that was kept.

A line is `{"step": 10, "time": …, "layers": [{"name": "blocks/block/feed/routed/0", "chosen": […],
…}, …]}` with the fields of `Layer`. A run keeps some 500 steps at most, however long it is.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jscale.errors import DataError
from jscale.experts.layer import Layer
from jscale.metrics.jsonl import cut_back, json_number

T = TypeVar("T")
MOST = 500  # steps of a run that are kept: some 85 MB for 48 layers of 128 experts


class Entry(NamedTuple):
    """The layers of one step."""

    step: int
    layers: tuple[Layer, ...]


class Journal:
    """Appends whole lines; opening cuts the file back to `step`, as `metrics.jsonl` is.

    Of a run of `steps` every so many are kept, and the first and the last.
    """

    def __init__(self, path: Path, step: int, steps: int, every: int) -> None:
        self._path, self._steps = path, steps
        self._every = max(every, math.ceil(steps / MOST))
        cut_back(path, step)

    def due(self, step: int) -> bool:
        """Whether this step is kept."""
        return step in (1, self._steps) or step % self._every == 0

    def write(self, step: int, layers: Sequence[Layer]) -> None:
        """Append a step."""
        told = [_as_data(layer) for layer in layers]
        line = {"step": step, "time": round(time.time(), 3), "layers": told}
        with self._path.open("ab", buffering=0) as file:
            file.write((json.dumps(line, allow_nan=False) + "\n").encode())


def read(path: Path, most: int | None = None) -> Iterator[Entry]:
    """The steps of a journal in order; a last line that is still being written is left out.

    With `most`, no more steps than that, evenly spread, with the first and the last.

    Raises:
        DataError: a line in the middle cannot be read.
    """
    lines = list(enumerate(path.read_bytes().splitlines(keepends=True), 1))
    lines = [(number, raw) for number, raw in lines if raw.endswith(b"\n")]
    for number, raw in evenly(lines, most):
        try:
            found = json.loads(raw)
            yield Entry(int(found["step"]), tuple(map(_layer, found["layers"])))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number} is no step of experts: {error}") from error


def evenly(found: Sequence[T], most: int | None) -> list[T]:
    """At most so many of them, evenly spread, with the first and the last.

    >>> evenly(range(10), 4), evenly(range(3), 4), evenly(range(3), None)
    ([0, 3, 6, 9], [0, 1, 2], [0, 1, 2])
    """
    if most is None or len(found) <= most:
        return list(found)
    last = len(found) - 1
    places = [round(i * last / (most - 1)) for i in range(most)] if most > 1 else [last]
    return [found[place] for place in places]


def _as_data(layer: Layer) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(float(x)) for x in value.tolist()]
        return json_number(float(f"{value:.6g}")) if isinstance(value, float) else value

    return {name: plain(value) for name, value in layer._asdict().items()}


def _layer(told: dict[str, Any]) -> Layer:
    arrays = {n: np.array([float(x) for x in told[n]]) for n in ("chosen", "mass", "correction")}
    numbers = [name for name in Layer._fields if name not in arrays and name != "name"]
    rest: dict[str, Any] = {name: float(told[name]) for name in numbers}
    return Layer(name=str(told["name"]), **arrays, **rest)
