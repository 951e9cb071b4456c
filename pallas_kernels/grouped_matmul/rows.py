"""Rows taken by index, and their gradients given back."""

# R rows given, M rows taken, D their size.

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def taken(x: Float[Array, "R D"], index: Int[Array, "..."]) -> Float[Array, "... D"]:
    """Rows by index, 0 where the index is out of range."""
    return x.at[index].get(mode="fill", fill_value=0)


def given_back(
    x: Float[Array, "R D"], rows: Int[Array, " M"] | None, dx: Float[Array, "M D"]
) -> Float[Array, "R D"]:
    """The gradient of x from that of its rows, of which one may have been taken several times."""
    if rows is None:
        return dx
    sums = jnp.zeros(x.shape, jnp.float32)  # bfloat16 would round after each of them
    return sums.at[rows].add(dx.astype(jnp.float32), mode="drop").astype(x.dtype)
