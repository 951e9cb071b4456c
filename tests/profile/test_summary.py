"""Made-up traces, whose figures are known, added up."""

from pathlib import Path

import pytest

from jscale.errors import DataError
from jscale.mesh.hlo import read
from jscale.mesh.scopes import Scope
from jscale.profile.summary import OTHER_PROGRAMS, UNATTRIBUTED, Timing, profile_of
from jscale.profile.trace import Event, Trace

PROGRAM = read((Path(__file__).parent / "loop.hlo").read_text())
TIMING = Timing(steps=1, seconds=20.0, data=3.0, compile=5.0)


def events(*rows: tuple[str, float, float]) -> tuple[Event, ...]:
    return tuple(Event(op, "jit_step", start, end) for op, start, end in rows)


ONE = events(
    ("copy.1", 0.0, 1.0),
    ("while", 1.0, 10.0),
    ("dot", 1.0, 4.0),
    ("start", 3.0, 3.5),  # hidden behind dot
    ("done", 4.0, 6.0),
    ("fusion", 6.0, 9.0),
    ("dot", 8.0, 9.0),
)


def test_every_second_of_a_device_has_one_owner() -> None:
    found = profile_of(Trace({0: ONE}, {0: ((0.0, 10.0),)}), PROGRAM, TIMING)
    assert {cost.scope: cost.seconds for cost in found.costs} == {
        UNATTRIBUTED: 1.0,
        Scope("layers/feed"): 4.0,
        Scope("embed"): 2.0,
        Scope("guard"): 2.0,
        Scope("layers"): 1.0,
    }
    assert found.busy == sum(cost.seconds for cost in found.costs) == 10.0
    assert (found.collectives, found.exposed) == (5.5, 4.0)
    assert found.exposed_share == pytest.approx(0.4)
    assert (found.waiting, found.idle) == (0.0, 0.0)
    assert [c.seconds for c in found.costs] == sorted(c.seconds for c in found.costs)[::-1]


def test_between_runs_a_device_waits_and_within_them_it_is_idle() -> None:
    two = events(("dot", 0.0, 2.0), ("dot", 3.0, 5.0), ("dot", 9.0, 10.0))
    runs = ((0.0, 5.0), (9.0, 10.0))
    found = profile_of(Trace({0: two}, {0: runs}), PROGRAM, TIMING)
    assert (found.busy, found.waiting, found.idle) == (5.0, 4.0, 1.0)
    unknown = profile_of(Trace({0: two}, {}), PROGRAM, TIMING)
    assert (unknown.busy, unknown.waiting, unknown.idle) == (5.0, 5.0, 0.0)


def test_figures_are_means_over_devices_and_steps() -> None:
    trace = Trace({0: ONE, 5: events(("dot", 0.0, 2.0))}, {})
    found = profile_of(trace, PROGRAM, TIMING._replace(steps=2))
    assert (found.devices, found.steps) == (2, 2)
    assert (found.step, found.data, found.compile) == (10.0, 1.5, 5.0)
    assert found.busy == pytest.approx((10.0 + 2.0) / 4)
    assert found.exposed == pytest.approx(4.0 / 4)


def test_what_is_not_known_is_said_to_be() -> None:
    strange = (
        Event("dot", "jit_other", 0.0, 2.0),
        Event("nobody", "jit_step", 2.0, 3.0),
        Event("ncclDevKernel_AllReduce", None, 3.0, 7.0),
    )
    found = profile_of(Trace({0: strange}, {}), PROGRAM, TIMING)
    assert {c.scope: c.seconds for c in found.costs} == {OTHER_PROGRAMS: 2.0, UNATTRIBUTED: 5.0}
    assert (found.collectives, found.exposed) == (4.0, 4.0)


def test_a_trace_without_a_device_is_refused() -> None:
    with pytest.raises(DataError, match="no device at work"):
        profile_of(Trace({}, {}), PROGRAM, TIMING)
