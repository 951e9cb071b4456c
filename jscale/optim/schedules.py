"""Learning rates over a run, as values.

A schedule says which fraction of the peak is used by update number `step` (from 0) of `steps`. One
formula serves both sides: `build` gives optax a function for inside the compiled step, `rate` gives
the host the same number without touching a device. Warm-up is linear and its first update already
moves: update `s` of `warmup` uses (s + 1) / warmup of the peak. A span is a number of updates, or,
below 1, a share of the run.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import optax

from jscale.errors import ConfigError
from jscale.optim import checks


@runtime_checkable
class Schedule(Protocol):
    """Anything that gives a learning rate for every update of a run."""

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate as a function of the update's number, for inside a compiled step."""
        ...

    def rate(self, peak: float, step: int, steps: int) -> float:
        """The learning rate of update number `step`, computed on the host."""
        ...


def updates(span: int | float, steps: int) -> int:
    """A span in updates: a whole number is one, a number below 1 is a share of the run.

    >>> updates(20, 600), updates(0.05, 600)
    (20, 30)
    """
    return span if isinstance(span, int) else round(span * steps)


class Formula(ABC):
    """A schedule by one formula, for the device and for the host alike."""

    warmup: int | float

    @abstractmethod
    def factor(self, step: Any, steps: int, xp: ModuleType) -> Any:
        """The fraction of the peak at `step` of `steps`; `xp` is numpy or jax.numpy."""

    def check(self, steps: int) -> None:
        """Raise `ConfigError` where the schedule does not fit into `steps`."""
        name, warmup = type(self).__name__, updates(self.warmup, steps)
        if steps < 1:
            raise ConfigError(
                f"a run of {steps} steps has no {name} schedule; steps must be 1 or more"
            )
        if warmup >= steps:
            raise ConfigError(
                f"{name}.warmup is {warmup} and the run has {steps} steps; warmup must be below"
                " steps; a number below 1 is a share of the run (optimizer.schedule.warmup=0.05)"
            )

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate as a function of the update's number."""
        self.check(steps)
        return lambda step: peak * self.factor(step, steps, jnp)

    def rate(self, peak: float, step: int, steps: int) -> float:
        """The learning rate of update number `step`, on the host."""
        return float(peak * self.factor(step, steps, np))


@dataclass(frozen=True)
class Constant(Formula):
    """The peak, after an optional warm-up.

    >>> Constant(warmup=4).rate(1.0, step=1, steps=100)
    0.5
    """

    warmup: int | float = 0  # updates, or a share of the run

    def __post_init__(self) -> None:
        checks.span(self, "warmup")

    def factor(self, step: Any, steps: int, xp: ModuleType) -> Any:
        return _warm(step, updates(self.warmup, steps), xp)


@dataclass(frozen=True)
class Cosine(Formula):
    """Half a cosine from the peak down to `final` of it (Loshchilov and Hutter, 1608.03983).

    >>> Cosine(final=0.1).rate(1.0, step=100, steps=100)
    0.1
    """

    warmup: int | float = 0  # updates, or a share of the run
    final: float = 0.1  # share of the peak at the end

    def __post_init__(self) -> None:
        checks.span(self, "warmup")
        checks.fraction(self, "final")

    def factor(self, step: Any, steps: int, xp: ModuleType) -> Any:
        progress = _progress(step, updates(self.warmup, steps), steps, xp)
        fall = 0.5 * (1.0 + xp.cos(math.pi * progress))
        return _warm(step, updates(self.warmup, steps), xp) * (
            self.final + (1.0 - self.final) * fall
        )


@dataclass(frozen=True)
class Linear(Formula):
    """A straight line from the peak down to `final` of it.

    >>> Linear(warmup=20, final=0.0).rate(1.0, step=60, steps=100)
    0.5
    """

    warmup: int | float = 0  # updates, or a share of the run
    final: float = 0.0  # share of the peak at the end

    def __post_init__(self) -> None:
        checks.span(self, "warmup")
        checks.fraction(self, "final")

    def factor(self, step: Any, steps: int, xp: ModuleType) -> Any:
        progress = _progress(step, updates(self.warmup, steps), steps, xp)
        return _warm(step, updates(self.warmup, steps), xp) * (1.0 - (1.0 - self.final) * progress)


@dataclass(frozen=True)
class WarmupStableDecay(Formula):
    """The peak until the last `decay` updates, then a line to `final` of it (2404.06395).

    >>> schedule = WarmupStableDecay(warmup=10, decay=20)
    >>> [schedule.rate(1.0, step, 100) for step in (50, 80, 90, 100)]
    [1.0, 1.0, 0.5, 0.0]
    """

    warmup: int | float  # updates, or a share of the run
    decay: int | float  # likewise
    final: float = 0.0  # share of the peak at the end

    def __post_init__(self) -> None:
        checks.span(self, "warmup")
        checks.span(self, "decay", least=1)
        checks.fraction(self, "final")

    def factor(self, step: Any, steps: int, xp: ModuleType) -> Any:
        progress = _progress(step, steps - updates(self.decay, steps), steps, xp)
        return _warm(step, updates(self.warmup, steps), xp) * (1.0 - (1.0 - self.final) * progress)

    def check(self, steps: int) -> None:
        """Raise `ConfigError` where warm-up and decay need more than `steps`."""
        super().check(steps)
        warmup, decay = updates(self.warmup, steps), updates(self.decay, steps)
        if warmup + decay > steps:
            raise ConfigError(
                f"WarmupStableDecay needs {warmup} + {decay} steps for warmup and decay, "
                f"and the run has {steps}; shorten one of them"
            )


@dataclass(frozen=True)
class InverseSquareRoot(Formula):
    """Up to the peak in `warmup` updates, then as 1 / sqrt(update) (Vaswani et al., 1706.03762).

    >>> InverseSquareRoot(warmup=25).rate(1.0, step=99, steps=1000)
    0.5
    """

    warmup: int | float  # updates, or a share of the run

    def __post_init__(self) -> None:
        checks.span(self, "warmup", least=1)

    def factor(self, step: Any, steps: int, xp: ModuleType) -> Any:
        warmup = max(1, updates(self.warmup, steps))
        return xp.minimum((step + 1) / warmup, xp.sqrt(warmup / (step + 1)))


def _warm(step: Any, warmup: int, xp: ModuleType) -> Any:
    return xp.minimum(1.0, (step + 1) / warmup) if warmup else xp.ones_like(step * 1.0)


def _progress(step: Any, start: int, end: int, xp: ModuleType) -> Any:
    """From 0 at `start` to 1 at `end`, and flat outside."""
    return xp.clip((step - start) / (end - start), 0.0, 1.0)
