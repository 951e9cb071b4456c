"""Grouped matmul by multiplying every row with every matrix: the definition of right."""

# R rows given, M rows taken, D their size, F that of the result, E groups (experts).

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def group_of(sizes: Int[Array, " E"], count: int) -> Int[Array, " M"]:
    """The group of each of `count` rows, for groups that follow one another; E for none."""
    return jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(count), side="right")


def reference(
    x: Float[Array, "R D"],
    w: Float[Array, "E D F"],
    sizes: Int[Array, " E"],
    rows: Int[Array, " M"] | None = None,
) -> Float[Array, "M F"]:
    """The product of each row with the matrix of its group, in float32 and then x's dtype."""
    taken = x if rows is None else x[rows]
    group = group_of(sizes, taken.shape[0])
    out = jnp.zeros((taken.shape[0], w.shape[2]), jnp.float32)
    for e in range(w.shape[0]):
        own = (group == e)[:, None]  # of the other rows not even a NaN comes through
        mine = jnp.where(own, taken.astype(jnp.float32), 0.0)
        out = out + jnp.where(own, mine @ w[e].astype(jnp.float32), 0.0)
    return out.astype(x.dtype)
