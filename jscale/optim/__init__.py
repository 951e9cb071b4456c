"""Optimizers and schedules as values, on top of optax.

`AdamW(peak=3e-4, schedule=Cosine(warmup=100))` is plain data; `build` turns it into an optax
transformation for a model's logical axes. Shampoo and SOAP are not here: optax 0.2.8 has neither,
and an optimizer enters through optax or through a user's own class with the three methods of
`Optimizer`.
"""

from jscale.optim.adafactor import Adafactor
from jscale.optim.adam import SGD, AdamW, Lion
from jscale.optim.averaged import Averaged
from jscale.optim.frozen import Frozen
from jscale.optim.muon import Muon
from jscale.optim.optimizer import Optimizer
from jscale.optim.placement import Placement, Replicated, place, state_axes
from jscale.optim.schedule_free import ScheduleFree
from jscale.optim.schedules import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    Schedule,
    WarmupStableDecay,
)
from jscale.optim.sparse_clip import SparseClip

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Averaged",
    "Constant",
    "Cosine",
    "Frozen",
    "InverseSquareRoot",
    "Linear",
    "Lion",
    "Muon",
    "Optimizer",
    "Placement",
    "Replicated",
    "Schedule",
    "ScheduleFree",
    "SparseClip",
    "WarmupStableDecay",
    "place",
    "state_axes",
]
