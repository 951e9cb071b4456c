"""What the counts of a layer's experts come to: how even they are, how sure its router is.

Each figure is of one layer, in one step or in several that were merged into one.
"""

# E experts, n devices that share them.

import math
from typing import NamedTuple

import numpy as np

from jscale.experts.layer import Layer

DEAD = 0.01  # of the mean load: an expert below it learns next to nothing
SURE = 20.0  # choices of an expert in the mean, below which one may be without any by chance


class Figures(NamedTuple):
    """The figures of a layer. Those of its load are NaN where nothing was routed."""

    most: float  # largest load over the mean load
    least: float  # smallest load over the mean load
    variation: float  # standard deviation of the loads over their mean
    effective: float  # exp(H) / E, H the entropy of the shares: as if so many were used, evenly
    collapse: float  # 0: even; 1: all tokens have the same few experts
    dead: tuple[int, ...]  # experts with less than 1 % of the mean load
    highest: float  # score of the router, of all tokens and experts
    log_sum: float  # mean of logΣexp of a token's scores
    margin: float  # mean of the best score over the second
    correction: tuple[float, float] | None  # the lowest and the highest; None: there is none
    dropped: float  # share of the choices that found no slot of their expert
    overflow: float  # choices that found no room on their device

    @property
    def maxvio(self) -> float:
        """By how much the largest load is above the mean, over the mean (arXiv 2408.15664)."""
        return self.most - 1


def figures(layer: Layer) -> Figures:
    """The figures of a layer."""
    total = float(layer.chosen.sum())
    loads = layer.chosen / layer.chosen.mean() if total else np.full(len(layer.chosen), np.nan)
    tokens = layer.tokens or math.nan
    return Figures(
        most=float(loads.max()),
        least=float(loads.min()),
        variation=float(loads.std()),
        effective=effective(layer.chosen),
        collapse=collapse(layer.chosen, layer.tokens),
        dead=dead(layer.chosen),
        highest=layer.highest,
        log_sum=layer.log_sum / tokens,
        margin=layer.margin / tokens,
        correction=_span(layer.correction),
        dropped=layer.dropped / total if total else math.nan,
        overflow=layer.overflow,
    )


def gate_mass(layer: Layer) -> np.ndarray:
    """By expert the mean weight with which its results count; NaN where nobody chose it.

    Where it falls with an expert's load, tokens go there that hardly want it.
    """
    some = layer.chosen > 0
    return np.where(some, layer.mass / np.where(some, layer.chosen, 1.0), np.nan)


def dead(chosen: np.ndarray) -> tuple[int, ...]:
    """The experts with less than 1 % of the mean load; none where the mean tells nothing yet."""
    mean = chosen.mean()
    return tuple(np.flatnonzero(chosen < DEAD * mean).tolist()) if mean >= SURE else ()


def imbalance(chosen: np.ndarray, devices: int) -> float:
    """The load of the busiest of the devices that share the experts in order, over their mean.

    1 where experts do not divide over the devices, so that they are not shared.
    """
    if devices < 1 or len(chosen) % devices or not chosen.sum():
        return 1.0
    each = chosen.reshape(devices, -1).sum(1)
    return float(each.max() / each.mean())


def waiting(imbalances: list[float]) -> float:
    """The share of experts' time that devices wait for the busiest one, over layers of equal work.

    >>> waiting([1.0, 1.0]), waiting([2.0])
    (0.0, 0.5)
    """
    mean = sum(imbalances) / len(imbalances) if imbalances else 1.0
    return 1 - 1 / mean


def effective(chosen: np.ndarray) -> float:
    """The part of the experts that would be used, evenly, at the same entropy; NaN for no choice.

    >>> effective(np.array([3.0, 3.0])), effective(np.array([5.0, 0.0]))
    (1.0, 0.5)
    """
    shares = chosen[chosen > 0] / chosen.sum()
    if not len(shares):
        return math.nan
    return float(np.exp(-(shares * np.log(shares)).sum()) / len(chosen))


def collapse(chosen: np.ndarray, tokens: float | int) -> float:
    """How far it is from even use, 0, to the same experts for all tokens, 1; NaN for no choice."""
    if not tokens:
        return math.nan
    lowest = min(chosen.sum() / len(chosen) / tokens, 1.0)
    found = (1 - effective(chosen)) / (1 - lowest) if lowest < 1 else 0.0
    return float(np.maximum(0.0, found))


def _span(correction: np.ndarray) -> tuple[float, float] | None:
    return (float(correction.min()), float(correction.max())) if len(correction) else None
