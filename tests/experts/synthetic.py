"""Loads of experts as a run would have counted them, drawn from shares that a test chooses."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jscale.experts.journal import Entry
from jscale.experts.layer import Layer
from jscale.experts.setting import Setting, settings_of

TOKENS, CHOICES = 4096, 2


def layer(
    chosen: np.ndarray,
    name: str = "blocks/block/feed/routed/0",
    tokens: float | int = TOKENS,
    **more: Any,
) -> Layer:
    """A layer with these loads."""
    numbers: dict[str, Any] = dict(
        log_sum=2.0 * tokens, margin=0.5 * tokens, highest=3.0, dropped=0.0, overflow=0.0
    )
    numbers |= dict(mass=chosen / CHOICES, correction=np.zeros(0)) | more
    return Layer(name=name, chosen=chosen.astype(float), tokens=float(tokens), **numbers)


def drawn(scores: np.ndarray, seed: int, **more: Any) -> Layer:
    """A layer whose tokens choose two experts by a softmax of these scores."""
    shares = np.exp(scores - scores.max())
    draw = np.random.default_rng(seed).multinomial(TOKENS * CHOICES, shares / shares.sum())
    return layer(np.minimum(draw, TOKENS), **more)


def course(
    steps: int, scores: Callable[[int], np.ndarray], every: int = 10, **more: Any
) -> list[Entry]:
    """So many kept steps of one layer."""
    return [
        Entry(step * every, (drawn(scores(step * every), step, **more),))
        for step in range(1, steps + 1)
    ]


def experts(count: int = 16, **changes: Any) -> tuple[Setting, ...]:
    """The settings of a recipe; `balance__scope="global"` changes a field of a part."""
    data: dict[str, Any] = {
        "type": "jscale.models.sparse:Experts",
        "count": count,
        "choice": {"type": "jscale.models.gates.topk:TopK", "choices": 2, "weights": "softmax"},
        "balance": {"weight": 0.01, "scope": "global", "z": 0.001, "steer": 0.001},
        "dispatch": {"by": "auto", "room": None},
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        data[part] = {**data[part], field: value}
    return settings_of({"model": {"experts": data}})
