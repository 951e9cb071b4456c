"""A trace and the program that ran, added up: time by named scope, collectives, waits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jscale.errors import DataError
from jscale.mesh.collectives import KINDS, chained, kind_of
from jscale.mesh.hlo import Instruction, Program
from jscale.mesh.scopes import Scope, scope_of
from jscale.profile.intervals import Interval, Work, gaps, length, shares, union, without
from jscale.profile.trace import Event, Trace

COMPUTE, COLLECTIVE, LOOP = range(3)  # what counts first where events overlap
CONTAINERS = ("while", "call", "conditional")
UNATTRIBUTED = Scope("(unattributed)")
OTHER_PROGRAMS = Scope("(other programs)")


class Cost(NamedTuple):
    """A named scope and its own time on a device: seconds in a step."""

    scope: Scope
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Where a step's time goes. All times are seconds in one step, the mean over the devices.

    The costs of all scopes add up to `busy`. `exposed` is the part of `collectives` during which
    the device computes nothing; `waiting` the time between programs, when it waits for the host;
    `idle` the rest of the time in which it does nothing. `busy + waiting + idle` is the step as the
    device sees it, from its first instruction to its last.
    """

    devices: int
    steps: int
    step: float  # as the host measures it
    compile: float  # seconds, once
    data: float  # the host's wait for the next batch
    busy: float
    collectives: float
    exposed: float
    waiting: float
    idle: float
    costs: tuple[Cost, ...]  # the highest first

    @property
    def exposed_share(self) -> float:
        """The part of the devices' busy time that is exposed collectives."""
        return self.exposed / self.busy if self.busy else 0.0


class Timing(NamedTuple):
    """What the host measured: seconds for all steps, for waits for data, and to compile."""

    steps: int
    seconds: float
    data: float
    compile: float


@dataclass(frozen=True)
class DeviceTime:
    """One device's part of a `Profile`, in seconds in all."""

    busy: float
    collectives: float
    exposed: float
    waiting: float
    idle: float
    shares: dict[Scope, float]


def profile_of(trace: Trace, program: Program, timing: Timing) -> Profile:
    """Add up a trace of `timing.steps` runs of a program.

    Raises:
        DataError: the trace has no device in it.
    """
    if not trace.events:
        raise DataError("the trace shows no device at work, so there is nothing to add up")
    each = [
        device_time(events, trace.runs.get(device, ()), program)
        for device, events in trace.events.items()
    ]
    per_step = timing.steps * len(each)
    mean: Callable[[Callable[[DeviceTime], float]], float] = lambda f: sum(map(f, each)) / per_step
    scopes = dict.fromkeys(scope for device in each for scope in device.shares)
    costs = [Cost(s, mean(lambda d, s=s: d.shares.get(s, 0.0))) for s in scopes]
    return Profile(
        devices=len(each),
        steps=timing.steps,
        step=timing.seconds / timing.steps,
        compile=timing.compile,
        data=timing.data / timing.steps,
        busy=mean(lambda d: d.busy),
        collectives=mean(lambda d: d.collectives),
        exposed=mean(lambda d: d.exposed),
        waiting=mean(lambda d: d.waiting),
        idle=mean(lambda d: d.idle),
        costs=tuple(sorted(costs, key=lambda cost: -cost.seconds)),
    )


def device_time(events: Sequence[Event], runs: Sequence[Interval], program: Program) -> DeviceTime:
    """The time of one device. Where its runs are not known, all that is not busy is waiting."""
    work = [work_of(event, program) for event in events]
    spans = [[(w.start, w.end) for w in work if w.rank == rank] for rank in range(3)]
    everything = [span for of_rank in spans for span in of_rank]
    nothing = gaps(everything)
    waiting = gaps(runs) if runs else nothing
    return DeviceTime(
        busy=length(everything),
        collectives=length(spans[COLLECTIVE]),
        exposed=length(without(spans[COLLECTIVE], spans[COMPUTE])),
        waiting=length(without(waiting, union(everything))),
        idle=length(without(nothing, waiting)),
        shares={s: t for s, t in shares(work).items() if isinstance(s, Scope)},
    )


def work_of(event: Event, program: Program) -> Work:
    """Whose time an event is, and whether of computing, a collective or a loop around both."""
    if event.module is not None and event.module != program.name:
        return Work(event.start, event.end, OTHER_PROGRAMS, COMPUTE)
    instruction = program.instructions.get(event.op)
    if instruction is None:
        rank = COLLECTIVE if "nccl" in event.op.lower() else COMPUTE
        return Work(event.start, event.end, UNATTRIBUTED, rank)
    scope = scope_of(instruction.op_name)
    label = scope if scope.path else UNATTRIBUTED
    return Work(event.start, event.end, label, rank_of(instruction, program))


def rank_of(instruction: Instruction, program: Program) -> int:
    """Whether an instruction computes, communicates, or is a loop around what does."""
    if instruction.opcode in CONTAINERS:
        return LOOP
    if kind_of(instruction) or instruction.opcode.removesuffix("-done") in KINDS:
        return COLLECTIVE
    called = [name for names in instruction.called.values() for name in names]
    for computation in (program.computations[name] for name in called):
        for inside in computation.instructions.values():
            if kind_of(inside) and chained(computation, inside) != "middle":
                return COLLECTIVE
    return COMPUTE  # also while a spread collective goes on behind it
