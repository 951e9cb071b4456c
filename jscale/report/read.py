"""What a run's folder tells of the run, read as data; no type of its recipe is imported."""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jscale.errors import CheckpointError, DataError
from jscale.experts.journal import Entry
from jscale.experts.journal import read as read_journal
from jscale.metrics.jsonl import Line, read_lines
from jscale.run.starts import read_starts

LARGEST, EXACT = 1e300, 2**53  # beyond, sums overflow, and whole numbers are not exact
KEPT = 400  # steps of a long run's experts that are looked at, evenly spread
ODD = "{} cannot be read, and its part of this page is missing"


class Metric(NamedTuple):
    """A number over the run: steps and times (seconds since 1970) ascending, and its values."""

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


class Sample(NamedTuple):
    """What the model wrote at a step; `text` begins with the prompt."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, eq=False)
class Account:
    """All that is known of a run; a file that is missing or unreadable leaves its part empty.

    `remarks` are sentences about such files. `owner` is who holds the folder, or held it when
    killed: process, host and time.
    """

    path: Path
    metrics: Mapping[str, Metric]
    samples: tuple[Sample, ...]
    recipe: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    starts: tuple[Mapping[str, Any], ...] = ()
    owner: Mapping[str, Any] = field(default_factory=dict)
    experts: tuple[Entry, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.path.name)

    @cached_property
    def step(self) -> int:
        """The last step of which there is a number."""
        return max(int(metric.steps[-1]) for metric in self.metrics.values())

    @property
    def steps(self) -> int | None:
        """How many steps the recipe asks for."""
        return whole(self.recipe.get("steps"))

    @property
    def tokens_per_step(self) -> int | None:
        """Rows times length, padding included, if the recipe's data have such."""
        data = part(self.recipe.get("data"))
        rows, length = whole(data.get("batch")), whole(data.get("length"))
        return whole(rows * length) if rows and length else None

    @property
    def going_on(self) -> bool | None:
        """Whether a process holds the folder; None where that cannot be known from here."""
        if not self.owner:
            return False
        if self.owner.get("host") != socket.gethostname():
            return None
        return alive(self.owner.get("process"))

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        return float(self.metrics[name].values[-1]) if name in self.metrics else None

    def elapsed(self, times: np.ndarray) -> np.ndarray:
        """Seconds of running until moments: the time between one start and the next is left out."""
        everything = np.concatenate([metric.times for metric in self.metrics.values()])
        begins = sorted(t for t in (number(s.get("began")) for s in self.starts) if t is not None)
        begins = [t for t in begins if t <= everything.max()] or [float(everything.min())]
        out, before = np.zeros(len(times)), 0.0
        for begin, end in zip(begins, [*begins[1:], np.inf], strict=True):
            inside = everything[(everything >= begin) & (everything < end)]
            here = (times >= begin) & (times < end)
            out[here] = before + times[here] - begin
            before += float(inside.max()) - begin if len(inside) else 0.0
        return out


def read_run(folder: Path) -> Account:
    """The account of the run in a folder. Nothing is written, and a run that is training may be
    read.

    Raises:
        CheckpointError: the folder is not that of a run, or nothing has been logged in it yet.
        DataError: a line of its metrics cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    if not (folder / "recipe.json").exists() and mapping(folder / "lock"):
        raise CheckpointError(f"the run in {folder} has only begun: there is nothing to report yet")
    if not (folder / "recipe.json").is_file():
        raise CheckpointError(f"{folder} is not the folder of a run: it has no recipe.json")
    recipe = mapping(folder / "recipe.json")
    if recipe is None:
        raise CheckpointError(f"{folder / 'recipe.json'} cannot be read as the recipe of a run")
    metrics, samples = read_metrics(folder / "metrics.jsonl")
    remarks: list[str] = []

    def read(name: str) -> dict[str, Any]:
        path = folder / name
        found = mapping(path) if path.exists() and path.stat().st_size else {}
        if found is None:
            remarks.append(ODD.format(name))
        return found or {}

    starts = read_starts(folder / "starts.json")
    if not starts and (folder / "starts.json").exists():
        remarks.append(ODD.format("starts.json"))
    return Account(
        path=folder,
        metrics=metrics,
        samples=samples,
        recipe=recipe,
        base=read("base.json"),
        environment=read("environment.json"),
        layout=read("layout.json"),
        starts=tuple(starts),
        owner=read("lock"),
        experts=read_experts(folder / "experts.jsonl", remarks),
        remarks=tuple(remarks),
    )


def read_metrics(path: Path) -> tuple[dict[str, Metric], tuple[Sample, ...]]:
    """Every number and every text of a metrics file.

    Raises:
        CheckpointError: there is no such file, or it has no number yet.
        DataError: a line in it cannot be read.
    """
    try:
        lines: list[Line] = list(read_lines(path))
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    columns: dict[str, list[tuple[int, float, float]]] = {}
    samples: list[Sample] = []
    for line in lines:
        for name, value in line.values.items():
            columns.setdefault(name, []).append((line.step, line.time, value))
        for name, text in line.text.items():
            samples.append(Sample(line.step, name.removeprefix("sample/"), str(text)))
    if not columns:
        raise CheckpointError(f"nothing has been logged in {path} yet: there is nothing to report")
    return {name: column(rows) for name, rows in columns.items()}, tuple(samples)


def read_experts(path: Path, remarks: list[str]) -> tuple[Entry, ...]:
    """What experts had to do in the steps that were kept, or as many of them as are looked at."""
    try:
        return tuple(read_journal(path, KEPT)) if path.exists() else ()
    except (DataError, OSError):
        remarks.append(ODD.format(path.name))
        return ()


def column(rows: list[tuple[int, float, float]]) -> Metric:
    rows.sort(key=lambda row: row[0])  # stable: of equal steps the first stays first
    steps, times, values = zip(*rows, strict=True)
    return Metric(np.array(steps), np.array(times, float), np.array(values, float))


def mapping(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def part(value: Any) -> dict[str, Any]:
    """An object of somebody's JSON; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """A list of somebody's JSON; an empty one in the place of anything else."""
    return value if isinstance(value, list) else []


def devices_words(about: Mapping[str, Any]) -> str:
    """`8 × cpu`, if that is known."""
    devices = part(about.get("devices"))
    return f"{devices.get('count')} × {devices.get('kind')}" if devices else ""


def moment(value: Any) -> str:
    """Seconds since 1970 as a date and a time of day."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(value))
    except (TypeError, OverflowError, ValueError, OSError):
        return "an unknown time"


def number(value: Any) -> float | None:
    """A finite number of somebody's JSON that can be calculated with, or None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and -LARGEST < value < LARGEST else None


def whole(value: Any) -> int | None:
    """A positive whole number of somebody's JSON, or None."""
    plain = isinstance(value, int) and not isinstance(value, bool)
    return value if plain and 0 < value < EXACT else None


def alive(process: Any) -> bool:
    if whole(process) is None:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
