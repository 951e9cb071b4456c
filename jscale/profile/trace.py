"""A profiler's trace, read: which instruction ran when on which device.

JAX writes an .xplane.pb, in which planes hold lines and lines hold events. Accelerators have a
plane each. On the processor all devices share one, whose events say their device; there, an event
named `end: x` marks the end of an instruction x that went on after its thread had left it.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jscale.errors import DataError
from jscale.profile.intervals import Interval

DEVICE_PLANE = re.compile(r"/device:(?:TPU|GPU|CPU):(\d+)$")
TPU_LINES = ("XLA Ops", "Async XLA Ops")


class Event(NamedTuple):
    """An instruction on a device. Times are in seconds from the beginning of the trace."""

    op: str
    module: str | None  # the program that it belongs to, where the trace says
    start: float
    end: float


@dataclass(frozen=True)
class Trace:
    """The events of each device, and when whole programs ran on it, where the trace tells."""

    events: Mapping[int, tuple[Event, ...]]
    runs: Mapping[int, tuple[Interval, ...]]


def trace_file(folder: Path) -> Path:
    """The newest .xplane.pb below a folder.

    Raises:
        DataError: there is none.
    """
    found = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda p: p.parent.name)
    if not found:
        raise DataError(f"there is no trace (plugins/profile/*/*.xplane.pb) in {folder}")
    return found[-1]


def read_trace(path: Path) -> Trace:
    """The trace in a file that JAX's profiler has written.

    Raises:
        DataError: it cannot be read.
    """
    with warnings.catch_warnings():
        # JAX 0.12 warns of its own types as they are first used; as an error that ends the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _read(path)


def _read(path: Path) -> Trace:
    try:
        data = jax.profiler.ProfileData.from_file(str(path))
        planes = [(DEVICE_PLANE.match(plane.name or ""), plane) for plane in data.planes]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is no trace that can be read: {error}") from error
    events: dict[int, tuple[Event, ...]] = {}
    runs: dict[int, tuple[Interval, ...]] = {}
    for found, plane in planes:
        if found:
            device = int(found[1])
            events[device], runs[device] = _accelerator(plane)
        elif plane.name == "/host:CPU":
            mine = _processor(plane)
            events |= mine.events
            runs |= mine.runs
    return Trace({d: e for d, e in events.items() if e}, runs)


def _accelerator(plane: Any) -> tuple[tuple[Event, ...], tuple[Interval, ...]]:
    """The events of a TPU's lines of operations, or of a GPU's streams; and its runs."""
    lines = {line.name: line for line in plane.lines}
    names = [n for n in TPU_LINES if n in lines] or [n for n in lines if n.startswith("Stream")]
    events = [_event(event, dict(event.stats)) for name in names for event in lines[name].events]
    runs = [(e.start_ns / 1e9, e.end_ns / 1e9) for e in _events(lines.get("XLA Modules"))]
    return tuple(events), tuple(runs)


def _events(line: Any) -> Iterable[Any]:
    return () if line is None else line.events


def _event(event: Any, stats: Mapping[str, Any]) -> Event:
    op = str(stats.get("hlo_op") or event.name).partition(" = ")[0].lstrip("%")
    module = stats.get("hlo_module")
    return Event(op, str(module) if module else None, event.start_ns / 1e9, event.end_ns / 1e9)


def _processor(plane: Any) -> Trace:
    """Simulated devices: events carry their device and their run."""
    found: list[tuple[int, Any, Any, Event]] = []  # device, run, mark, event
    ends: dict[Any, float] = {}
    for line in plane.lines:
        for event in line.events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                device = int(stats.get("device_ordinal", 0))
                found.append((device, stats.get("run_id"), stats.get("_p"), _event(event, stats)))
            elif event.name.startswith("end: "):
                ends[stats.get("_c")] = event.start_ns / 1e9
    events: dict[int, list[Event]] = defaultdict(list)
    runs: dict[tuple[int, Any], Interval] = {}
    for device, run, mark, event in found:
        end = max(event.end, ends.get(mark, event.end))
        events[device].append(event._replace(end=end))
        begun, ended = runs.get((device, run), (event.start, end))
        runs[device, run] = (min(begun, event.start), max(ended, end))
    return Trace(
        {device: tuple(mine) for device, mine in events.items()},
        {d: tuple(span for (device, _), span in runs.items() if device == d) for d in events},
    )
