"""What one layer's experts had to do in one step, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Layer(NamedTuple):
    """Of one layer in one step: numbers, and for each expert how often it was chosen, with what
    weight in all, and its correction (empty where there is none)."""

    name: str  # the path of its weights, and which layer of the stack
    chosen: np.ndarray
    mass: np.ndarray
    tokens: float
    log_sum: float
    margin: float
    highest: float
    dropped: float
    overflow: float
    correction: np.ndarray


def merged(layers: Sequence[Layer]) -> Layer:
    """One layer over several steps: sums, the highest score of all, the newest correction.

    Raises:
        IndexError: there is no step.
    """
    total = lambda name: sum(getattr(layer, name) for layer in layers)
    added = {name: total(name) for name in Layer._fields if name not in KEPT}
    highest = max(layer.highest for layer in layers)
    return layers[-1]._replace(**added, highest=highest)


KEPT = ("name", "highest", "correction")  # what is not added up


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Of each layer's name what tells it from the others; whole names where that is not enough.

    >>> short_names(["blocks/block/feed/routed/0", "blocks/block/feed/routed/1"])
    {'blocks/block/feed/routed/0': '0', 'blocks/block/feed/routed/1': '1'}
    >>> list(short_names(["parts/1/feed/0", "parts/1/feed/1", "ahead/0/feed/0"]).values())
    ['parts/1/0', 'parts/1/1', 'ahead/0/0']
    >>> short_names(["feed/routed"])
    {'feed/routed': 'feed/routed'}
    """
    parts = [name.split("/") for name in names]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    shared = {part for part in shared if not part.isdigit()}
    short = ["/".join(p for p in each if p not in shared) for each in parts]
    told = short if all(short) and len(set(short)) == len(names) else names
    return dict(zip(names, told, strict=True))
