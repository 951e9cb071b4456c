"""Attention sinks: a key with the value 0 that every query sees, and a score of its own."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.scores import Scores


def with_sinks(
    out: Float[Array, "B T N V"], lse: Float[Array, "B T N"], sinks: Float[Array, " N"]
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """A result after each query has also seen a key with such scores and the value 0.

    The gradient of sinks is as exact as `out`: it is a sum over all queries, in which rounded
    results need not cancel as true ones do. Where `out` is bfloat16 it may be off by 2e-2.
    """
    more = jnp.logaddexp(lse, sinks.astype(lse.dtype))
    return (out.astype(lse.dtype) * jnp.exp(lse - more)[..., None]).astype(out.dtype), more


def afterwards(run: Callable[..., Any], widened: bool = True) -> Callable[..., Any]:
    """A backend that knows no sinks, with them added to what it computes in float32, if `widened`.

    Otherwise that is in the arrays' dtype, with what `with_sinks` says of it.
    """

    def sunk(
        q: Array, k: Array, v: Array, mask: Mask, scores: Scores, places: Places
    ) -> tuple[Any, Any]:
        if scores.sinks is None:
            return run(q, k, v, mask, scores, places)
        wide = jnp.dtype(jnp.float32) if widened and q.dtype.itemsize < 4 else q.dtype
        inputs = (x.astype(wide) for x in (q, k, v))
        out, lse = run(*inputs, mask, replace(scores, sinks=None), places)
        out, lse = with_sinks(out, lse, scores.sinks)
        return out.astype(q.dtype), lse

    return sunk


def beginning(sink: Any, least: float) -> tuple[Any, Any]:
    """With what a running maximum and a running sum begin: the sink's score has the weight 1."""
    return (least, 0.0) if sink is None else (jnp.maximum(sink, least), 1.0)


def slope_of_sinks(
    sinks: Float[Array, " N"],
    lse: Float[Array, "B N T"],
    sums: Float[Array, "B N T"],
    dot: Float[Array, "B N T"],
    more: Float[Array, "B N T"],
) -> Float[Array, " N"]:
    """The gradient of sinks, exact although the result that is saved was rounded.

    `lse` is with the sinks. `sums` are Σ_s p_s (δ_s − dot) of each query over its keys, where p are
    the weights, δ the slopes by them, and dot the saved result's product with its own slope, less
    `more`, the slope of lse. Hence Σ_s p_s δ_s = sums + dot · (1 − p_sink), without the rounding.
    """
    weight = jnp.exp(sinks.astype(jnp.float32)[:, None] - lse)
    mean = sums + dot * (1 - weight)
    return (weight * (more - mean)).sum((0, 2)).astype(sinks.dtype)
