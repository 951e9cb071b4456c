"""Times of competitors that take turns, so that what else the machine does meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jscale.launch.bench.subject import Program


@dataclass(frozen=True)
class Clock:
    """Seconds of which kind, how long a turn is at least, and how many turns there are.

    Attributes:
        now: seconds since whenever.
        kind: what they are, for people.
        turn: seconds of one turn, of as many calls as that takes.
        rounds: turns of each competitor, at most.
        budget: seconds, after which no further round begins.
    """

    now: Callable[[], float]
    kind: str
    turn: float = 0.02
    rounds: int = 25
    budget: float = 10.0


def clock_of(platform: str, quick: bool = False) -> Clock:
    """On a CPU the seconds of the processor, all threads: other programs do not count then."""
    few = {"turn": 0.0, "rounds": 2} if quick else {}
    if platform == "cpu":
        return Clock(time.process_time, "processor seconds, all threads", **(few or {"turn": 0.1}))
    return Clock(time.perf_counter, "seconds", **few)


class Times(NamedTuple):
    """Seconds of a call, one of each turn; those of competitors stand side by side."""

    seconds: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    def ratio(self, other: "Times") -> float:
        """How many times as long as the other it takes: the median of the ratios turn by turn."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def take_turns(programs: Mapping[Any, Program], clock: Clock) -> dict[Any, Times]:
    """The times of all programs, each of which has been called once before."""
    calls = {name: _calls(program, clock) for name, program in programs.items()}
    seconds: dict[Any, list[float]] = {name: [] for name in programs}
    start, order = clock.now(), list(programs)
    for n in range(clock.rounds):
        for name in order if n % 2 else order[::-1]:
            seconds[name].append(_turn(programs[name], calls[name], clock))
        if n > 1 and clock.now() - start > clock.budget:
            break
    return {name: Times(tuple(found)) for name, found in seconds.items()}


def _turn(program: Program, calls: int, clock: Clock) -> float:
    """Seconds of one of so many calls."""
    begin, last = clock.now(), None
    for _ in range(calls):
        last = program.call()
    program.wait(last)
    return max(clock.now() - begin, 1e-9) / calls


def _calls(program: Program, clock: Clock) -> int:
    """How many calls make a turn."""
    program.wait(program.call())
    return max(1, round(clock.turn / _turn(program, 1, clock)))


def rounded(x: Any) -> Any:
    """Four digits of every number in plain data."""
    if isinstance(x, dict):
        return {name: rounded(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value) for value in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x
