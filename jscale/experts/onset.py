"""When a layer of experts began to collapse, from its figures over the steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jscale.experts.figures import collapse
from jscale.experts.layer import Layer

WINDOW = 20  # kept steps at most that count as "now": single steps of few tokens are noise
PART = 5  # a window is at most this part of the steps that were kept

# `Figures.collapse` is 0 for even use and 1 where all tokens have the same experts.
UNEVEN = 0.25  # of 128 experts, 8 a token: as if 30 of them were missing
COLLAPSED = 0.6  # the same as if 72 were missing; a strongly skewed load has 0.5
MOVED = 0.15  # a change that is no noise: of the same, 18 experts


class Course(NamedTuple):
    """How the collapse of a layer went: its figure over each trailing window, and what it is now.

    `since` is the step at which it began to leave even use for good; None where it is even now, or
    never was.
    """

    now: float
    highest: float  # of any window up to now
    lowest: float
    since: int | None


def window(steps: int) -> int:
    """How many kept steps make a window."""
    return max(1, min(WINDOW, steps // PART))


def course(steps: Sequence[int], layers: Sequence[Layer]) -> Course:
    """The course of one layer over these steps, at each of which something was routed."""
    width = window(len(layers))
    raw, smooth = _collapse(layers, 1), _collapse(layers, width)
    return Course(
        now=float(smooth[-1]),
        highest=float(smooth.max()),
        lowest=float(smooth.min()),
        since=_since(steps, raw, smooth),
    )


def _collapse(layers: Sequence[Layer], width: int) -> np.ndarray:
    """The collapse of the loads of each so many steps, up to each step."""

    def trailing(each: np.ndarray) -> np.ndarray:
        total = np.cumsum(each, 0)
        total[width:] -= total[:-width].copy()
        return total

    chosen = trailing(np.stack([layer.chosen for layer in layers]))
    tokens = trailing(np.array([layer.tokens for layer in layers]))
    return np.array([collapse(c, float(t)) for c, t in zip(chosen, tokens, strict=True)])


def _since(steps: Sequence[int], raw: np.ndarray, smooth: np.ndarray) -> int | None:
    """The step at which the last rise above `UNEVEN` began."""
    if smooth[-1] < UNEVEN or smooth.min() >= UNEVEN:
        return None
    even = np.flatnonzero(smooth < UNEVEN)
    last = int(even[-1])
    before = np.flatnonzero(smooth[:last] >= UNEVEN)
    first = int(before[-1]) + 1 if len(before) else 0
    half = smooth[last] + (smooth[-1] - smooth[last]) / 2
    end = last + 1 + int(np.argmax(smooth[last + 1 :] >= half))
    below = np.flatnonzero(raw[first:end] < half)  # a window lags behind what happened
    end = first + int(below[-1]) + 1 if len(below) else end
    return int(steps[first + _bend(raw[first : end + 1])])


def _bend(values: np.ndarray) -> int:
    """Where values stop being level and begin to rise in a line: the least squares of all bends.

    >>> _bend(np.array([0.0, 0.0, 0.0, 1.0, 2.0]))
    2
    """
    places = np.arange(len(values))

    def error(bend: int) -> float:
        basis = np.stack([np.ones(len(values)), np.maximum(places - bend, 0.0)], 1)
        fit, *_ = np.linalg.lstsq(basis, values, rcond=None)
        return float(np.square(values - basis @ fit).sum())

    return min(range(max(len(values) - 1, 1)), key=error)
