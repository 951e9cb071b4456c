"""Tokens a second and what they mean for the hardware."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Rates(NamedTuple):
    """Speed over the window: tokens and seconds, and the part of the peak that the model used."""

    tokens_per_second: float
    step_seconds: float
    mfu: float

    def values(self, remaining: int) -> dict[str, float]:
        """The rates by name, with the seconds that `remaining` steps will take."""
        return {**self._asdict(), "eta_seconds": remaining * self.step_seconds}


class Throughput:
    """Speed over the last `window` steps, pauses left out.

    Time counts from construction to the first `step()`, and from one `step()` to the next, so that
    a loop which runs ahead of its devices is measured by the pace at which they take its steps.

    Args:
        flops_per_token: model FLOPs to train on one token (`jscale.flops`).
        peak: FLOP/s of all devices of the run together.
        window: steps to average over.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak: float,
        window: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert flops_per_token > 0 and peak > 0 and window > 0
        self._flops_per_token = flops_per_token
        self._peak = peak
        self._clock = clock
        self._steps: deque[tuple[float, int]] = deque(maxlen=window)
        self._since = clock()
        self._paused = 0

    def step(self, tokens: int) -> None:
        """A step over this many tokens (of all processes) has been taken."""
        now = self._clock()
        self._steps.append((now - self._since, tokens))
        self._since = now

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time in this block (compiling, saving, evaluating) belongs to no step; may be nested."""
        start = self._clock()
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            if not self._paused:
                self._since += self._clock() - start

    def rates(self) -> Rates | None:
        """The speed over the window, or None before the first step."""
        seconds = sum(seconds for seconds, _ in self._steps)
        if not self._steps or seconds <= 0:
            return None
        speed = sum(tokens for _, tokens in self._steps) / seconds
        return Rates(
            tokens_per_second=speed,
            step_seconds=seconds / len(self._steps),
            mfu=speed * self._flops_per_token / self._peak,
        )
