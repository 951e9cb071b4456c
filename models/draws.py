"""What networks draw while they train: dropped units, dropped branches."""

# B rows.

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray


class Drawing(nnx.Module):
    """A network that draws while it trains. `Model.bind` gives it its key; without, all is still.

    Its `__call__` hands the key on in the `Context`; each block of a `Stack` gets its own.
    """

    key: Any = None  # a PRNGKeyArray or None


def stream(key: PRNGKeyArray | None, name: str) -> PRNGKeyArray | None:
    """The key of one of those who draw within a block, by a name that is theirs."""
    if key is None:
        return None
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def dropout(x: Float[Array, "*B D"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*B D"]:
    """Each number 0 with probability `rate`, else divided by 1 − rate; without a key, `x`.

    Source: Srivastava et al. 2014, JMLR 15.
    """
    return _drop(x, rate, key, x.shape)


def drop_path(
    x: Float[Array, "B *D"], rate: float | Float[Array, ""], key: PRNGKeyArray | None
) -> Float[Array, "B *D"]:
    """Whole rows 0 with probability `rate`, else divided by 1 − rate: a branch is left out.

    Source: Huang et al. 2016, arXiv 1603.09382.
    """
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: Array, rate: Any, key: PRNGKeyArray | None, shape: tuple[int, ...]) -> Array:
    if key is None or (isinstance(rate, (int, float)) and rate == 0):
        return x
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    keep = jnp.asarray(1 - rate, x.dtype)
    # At a rate of 1 nothing is kept: 0, and not 0 / 0.
    return jnp.where(kept, x / jnp.where(keep == 0, 1, keep), 0)
