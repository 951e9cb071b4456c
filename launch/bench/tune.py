"""Finds the tiles with which a case takes least time, among those that the rules say fit."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jscale.launch.bench.case import first_line
from jscale.launch.bench.measure import Clock, rounded, take_turns
from jscale.launch.bench.subject import Ready, Subject, Values, differentiable, wrong
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.tiles.processor import processor
from jscale.pallas_kernels.tiles.table import Row
from jscale.pallas_kernels.tiles.tunable import Tunable, plain

ABREAST = 6  # candidates that take turns at a time, beside the best so far
CLEAR = 0.98  # a candidate must take less than this of the best's time


class Target(NamedTuple):
    """What is tuned for a case: the tiles' rules, the sizes, and the operation with given tiles."""

    tunable: Tunable
    extent: Any
    run: Callable[[Any], Callable[..., Any]]


def targets(subject: Subject, case: Any, where: Device) -> list[Target]:
    """What of a subject can be tuned for a case on a device."""
    return [] if subject.targets is None else list(subject.targets(case, where))


Race = Callable[[Mapping[Any, Ready]], Mapping[Any, float]]  # how long each takes, by one measure


def race_by(clock: Clock) -> Race:
    """A race of training passes, in which all take turns; medians of the turns."""

    def race(ready: Mapping[Any, Ready]) -> Mapping[Any, float]:
        times = take_turns({n: r.programs["training"] for n, r in ready.items()}, clock)
        first = next(iter(times.values()))
        return {n: t.ratio(first) * first.middle for n, t in times.items()}

    return race


def tune(
    subject: Subject,
    case: Any,
    target: Target,
    kind: str,
    clock: Clock,
    tell: Callable[[str], None] = lambda line: None,
    race: Race | None = None,
) -> Row:
    """The row of the fastest tiles for a case: first the rule's, then group by group.

    A candidate that cannot be compiled, or is not right, is told and passed over.
    """
    rule = target.tunable.rule(kind, target.extent)
    inputs = subject.inputs(case)
    right = subject.values(case, inputs)
    race = race or race_by(clock)
    limit = subject.limits[case.dtype]
    make = lambda tiles: prepared(target, tiles, inputs, right, limit, tell)
    best, told = rule, 1.0
    holder = make(rule)
    for group in range(len(target.tunable.groups)):
        tried = target.tunable.candidates(group, kind, target.extent, best)
        for start in range(0, len(tried), ABREAST):
            made = {tiles: make(tiles) for tiles in tried[start : start + ABREAST]}
            ready = {best: holder, **made}
            times = race({tiles: one for tiles, one in ready.items() if one is not None})
            best, holder, told = winner(times, ready, best, told, tell)
    where = {"device": kind, "processor": processor(), "jax": jax.__version__}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    measured = {"at": target.extent._asdict(), "rule": plain(rule), "ratio": told, "date": date}
    return target.tunable.row(target.extent, best, rounded({**measured, **where}))


def prepared(
    target: Target,
    tiles: Any,
    inputs: Mapping[str, Any],
    right: Values,
    limit: float,
    tell: Callable[[str], None],
) -> Ready | None:
    """The operation with these tiles, if it compiles and is right."""
    try:
        run = target.run(target.tunable.cut(target.extent, tiles))
        ready = differentiable(run)(inputs, ["training"])
        error = wrong(ready.values(), right, limit)
    except Exception as failure:  # the compiler's own answer to tiles that it cannot take
        error = first_line(failure)
    if error is None:
        return ready
    tell(f"  {plain(tiles)}: {error}")
    return None


def winner(
    times: Mapping[Any, float],
    ready: Mapping[Any, Ready | None],
    best: Any,
    told: float,
    tell: Callable[[str], None],
) -> tuple[Any, Ready | None, float]:
    """The fastest where that is clear, else who was best; and its time beside the rule's."""
    for tiles, seconds in times.items():
        tell(f"  {plain(tiles)}: {1e3 * seconds:,.3f} ms")
    first = min(times, key=lambda tiles: times[tiles], default=best)
    if best in times and times.get(first, 0.0) > CLEAR * times[best]:
        return best, ready[best], told
    ratio = times[first] / times[best] if best in times else 1.0
    return first, ready[first], told * ratio
