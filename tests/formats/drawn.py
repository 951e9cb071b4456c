"""Weights that need no program to be made."""

from typing import Any

import jax
import numpy as np

from jscale.models.model import Model


def drawn(config: Any) -> Any:
    """Random weights of a model, in the tree of its own, drawn on the host."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda s: draw(s.shape, np.float32), Model(config).shapes)
