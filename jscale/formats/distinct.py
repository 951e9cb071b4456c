"""Experts that are the same to the bit: some were lost then, and others are there twice."""

# S stacks (layers × experts).

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from jscale.checkpoint.names import named_leaves
from jscale.errors import CheckpointError

STACKED = ("layers", "experts")
ODD = 2_654_435_761  # Knuth's multiplier: numbers count by their places as well


def check_distinct(params: PyTree[Array], axes: PyTree[PartitionSpec]) -> None:
    """See that no two experts of a layer have all their weights alike.

    Axes are the logical ones of `Model.axes`. Sums are compared first, where the weights are.

    Raises:
        CheckpointError: two are the same to the bit.
    """
    arrays, names = named_leaves(params), named_leaves(axes)
    layers: dict[str, list[tuple[Array, int]]] = {}
    for name, array in arrays.items():
        if "experts" in (stack := _stack(names[name])):
            layers.setdefault(name.partition("/expert/")[0], []).append((array, len(stack)))
    for layer, weights in layers.items():
        _check(layer, weights)


def _stack(axes: PartitionSpec) -> tuple[str, ...]:
    """The first axes, which count layers and experts."""
    names = tuple(axes)
    return names[: next((i for i, n in enumerate(names) if n not in STACKED), len(names))]


def _check(layer: str, weights: Sequence[tuple[Array, int]]) -> None:
    sums = np.stack([np.asarray(_sums(array, deep)) for array, deep in weights])
    *stacks, experts = sums.shape[1:]
    for at in np.ndindex(*stacks):
        seen: dict[Hashable, int] = {}
        for expert in range(experts):
            first = seen.setdefault(sums[(slice(None), *at, expert)].tobytes(), expert)
            same = lambda a, at=at, i=first, j=expert: jnp.array_equal(a[(*at, i)], a[(*at, j)])
            if first != expert and all(same(array) for array, _ in weights):
                where = f"{layer}, layer {at[0]} of this stack" if at else layer
                raise CheckpointError(
                    f"experts {first} and {expert} of {where}, are the same to the bit: one of them"
                    " was lost"
                )


def _sums(array: Any, deep: int) -> UInt32[Array, "*S"]:
    """A number for each expert, which tells most others apart."""

    @jax.jit
    def run(array: Array) -> Array:
        words = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        bits = lax.bitcast_convert_type(array, words).astype(jnp.uint32)
        places = sum(
            lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(31**axis)
            for axis in range(deep, bits.ndim)
        )
        by = (places * np.uint32(ODD)) | np.uint32(1)
        return (bits * by).sum(tuple(range(deep, bits.ndim)), dtype=jnp.uint32)

    return run(array)
