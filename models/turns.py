"""Blocks of different kinds that take turns, such as every second one with experts."""

# B batch, T length, D model size.

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.models.draws import stream

Make = Callable[[nnx.Rngs], nnx.Module]


class Turn(nnx.Module):
    """One block of each kind, one after the other: a block of a `Stack`, which scans over turns.

    What they report is gathered by name, from those that report it.
    """

    def __init__(self, makes: tuple[Make, ...], rngs: nnx.Rngs):
        self.layers = nnx.List([make(rngs) for make in makes])

    def __call__(
        self, x: Float[Array, "B T D"], context: Any, state: Any
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Any]]:
        gathered: dict[str, list[Any]] = {}
        each = []
        for i, layer in enumerate(self.layers):
            here = context._replace(key=stream(context.key, str(i)))
            x, (reports, own) = layer(x, here, jax.tree.map(lambda a, i=i: a[i], state))
            each.append(own)
            for name, value in reports.items():
                gathered.setdefault(name, []).append(value)
        stack = lambda *values: jnp.stack(values)
        told = {name: jax.tree.map(stack, *values) for name, values in gathered.items()}
        return x, (told, jax.tree.map(stack, *each))


def folded(state: Any, turns: int) -> Any:
    """What layers have of their own, [L, ...], by turns."""
    if turns == 1:
        return state
    return jax.tree.map(lambda a: a.reshape(-1, turns, *a.shape[1:]), state)


def unfolded(outputs: Any, turns: int) -> Any:
    """What turns gave, by layers; of a report, by the layers that have it."""
    if turns == 1:
        return outputs
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)
