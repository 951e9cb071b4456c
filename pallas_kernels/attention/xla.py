"""Attention tile by tile in plain XLA: no array of T × S, and work only where the mask allows.

Scores of one tile of queries against one tile of keys are made, used and forgotten; a running
maximum and sum make the softmax exact (Milakov & Gimelshein 2018, arXiv 1805.02867). The backward
pass makes them again from the saved log-sum-exp (Dao et al. 2022, arXiv 2205.14135). Each tile of
queries visits the tiles of keys of which the mask may show it something, and no others.
"""

# B batch, T query length, S key length, K key/value heads, G query heads for each, H head size,
# V value size. i and j count tiles of queries and of keys, t and s are places in a tile.

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.tuned import XLA, Extent
from jscale.pallas_kernels.attention.visits import Tiles, Visits, allowed, away, fill, look
from jscale.pallas_kernels.device import device


class Kind(NamedTuple):
    """What is known of a call while tracing."""

    mask: Mask
    size: Tiles
    scale: float
    cap: float | None


class Context(NamedTuple):
    """What has no gradient: ALiBi's slopes, and where the queries and keys stand."""

    slopes: Float[Array, "K G"] | None
    visits: Visits


def blockwise(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
    size: Tiles | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`, in memory that grows with T + S; sums in float32, products in `q`'s dtype.

    A bias's gradient is made tile by tile, summed over the rows and heads that share it.
    """
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    if 0 in (B, T, N, S):
        return jnp.zeros((B, T, N, V), q.dtype), jnp.full((B, T, N), LEAST)
    size = size or XLA.of(device().kind, Extent(T, S, H, V, str(q.dtype)))
    whole = size.whole(T, S)
    heads_first = lambda x, length: fill(x.swapaxes(1, 2), length, 2)
    grouped = heads_first(q, whole[0]).reshape(B, K, N // K, whole[0], H)
    per_head = lambda x, *rest: x.reshape(K, N // K, *rest) if N == len(x) else x[None]
    bias, slopes = scores.bias, scores.slopes
    if bias is not None:
        bias = jax.vmap(lambda x: per_head(x, T, S))(bias)
        bias = fill(fill(bias, whole[0], 3), whole[1], 4)
    context = Context(
        None if slopes is None else lax.stop_gradient(per_head(slopes)),
        look(mask, size, (T, S), places),
    )
    kind = Kind(mask, size, scores.of(H), scores.cap)
    out, lse = _attend(
        kind, grouped, heads_first(k, whole[1]), heads_first(v, whole[1]), bias, context
    )
    out = out.reshape(B, N, whole[0], V)[:, :, :T].swapaxes(1, 2)
    return out, lse.reshape(B, N, whole[0])[:, :, :T].swapaxes(1, 2)


product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def logits(
    kind: Kind, q: Array, k: Array, bias: Array | None, context: Context, at: tuple[Any, Any]
) -> tuple[Float[Array, "B K G t s"], Array, Array | None]:
    """The scores of tiles i and j, who sees whom there, and the slope of the cap."""
    made = product("bkgth,bksh->bkgts", q, k) * kind.scale
    slope = None
    if kind.cap is not None:
        part = jnp.tanh(made / kind.cap)
        made, slope = kind.cap * part, 1 - part * part
    if bias is not None:
        made += tile_of(bias, kind.size, at)
    over_heads = lambda x: jnp.expand_dims(x, (-4, -3)) if x.ndim == 3 else x
    if context.slopes is not None:
        back = over_heads(away(kind.size, context.visits, *at))
        made -= context.slopes[..., None, None] * back.astype(jnp.float32)
    seen = over_heads(allowed(kind.mask, kind.size, context.visits, *at))
    return jnp.where(seen, made, LEAST), seen, slope


def tile_of(bias: Array, size: Tiles, at: tuple[Any, Any]) -> Array:
    """The part of a bias that is for tiles i and j."""
    start = 0, 0, 0, at[0] * size.queries, at[1] * size.keys
    return lax.dynamic_slice(bias, start, (*bias.shape[:3], size.queries, size.keys))


def forward(
    kind: Kind, q: Array, k: Array, v: Array, bias: Array | None, context: Context
) -> tuple[Float[Array, "B K G T V"], Float[Array, "B K G T"]]:
    """The result, and the log-sum-exp of each query's scores (−1e30 where it sees nothing)."""
    size, visits = kind.size, context.visits

    def tile(i: Array) -> tuple[Array, Array]:
        mine = lax.dynamic_slice_in_dim(q, i * size.queries, size.queries, 3)

        def visit(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            peak, total, out = carry
            j = visits.order[i, n]
            keys, values = (
                lax.dynamic_slice_in_dim(x, j * size.keys, size.keys, 2) for x in (k, v)
            )
            made, seen, _ = logits(kind, mine, keys, bias, context, (i, j))
            new = jnp.maximum(peak, made.max(-1))
            shrink = jnp.exp(peak - new)
            weights = jnp.where(seen, jnp.exp(made - new[..., None]), 0.0)
            more = product("bkgts,bksh->bkgth", weights.astype(v.dtype), values)
            return new, total * shrink + weights.sum(-1), out * shrink[..., None] + more

        zeros = jnp.zeros(mine.shape[:-1])
        start = zeros + LEAST, zeros, jnp.zeros((*zeros.shape, v.shape[-1]))
        peak, total, out = lax.fori_loop(0, visits.count[i], visit, start)
        some = jnp.where(total == 0, 1.0, total)
        out = (out / some[..., None]).astype(q.dtype)
        return out, jnp.where(total == 0, LEAST, peak + jnp.log(some))

    outs, sums = lax.map(tile, jnp.arange(visits.count.size))
    join = lambda x: jnp.moveaxis(x, 0, 3).reshape(*q.shape[:4], *x.shape[5:])
    return join(outs), join(sums)


Sums = tuple[Array, Array, Array | None]  # of k, v and the bias, over the tiles of queries so far


def backward(
    kind: Kind, saved: tuple[Any, ...], slopes: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array | None, None]:
    """The gradients of q, k, v and the bias, in float32 sums."""
    q, k, v, bias, context, out, lse = saved
    size, visits = kind.size, context.visits
    g, more = slopes
    dot = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - more

    def tile(sums: Sums, i: Array) -> tuple[Sums, Array]:
        mine, grads, norms, dots = (
            lax.dynamic_slice_in_dim(x, i * size.queries, size.queries, 3) for x in (q, g, lse, dot)
        )

        def visit(n: Array, carry: tuple[Array, Sums]) -> tuple[Array, Sums]:
            dq, (dk, dv, dbias) = carry
            j = visits.order[i, n]
            at = j * size.keys
            keys, values = (lax.dynamic_slice_in_dim(x, at, size.keys, 2) for x in (k, v))
            made, seen, capped = logits(kind, mine, keys, bias, context, (i, j))
            weights = jnp.where(seen, jnp.exp(made - norms[..., None]), 0.0)
            slopes = product("bkgth,bksh->bkgts", grads, values) - dots[..., None]
            slopes = weights * slopes
            if dbias is not None:
                dbias = _put(dbias, slopes, size, (i, j))
            slopes = slopes if capped is None else slopes * capped
            slopes = (slopes * kind.scale).astype(q.dtype)

            def add(total: Array, *factors: Array) -> Array:
                more = product("bkgts,bkgth->bksh", *factors)
                more += lax.dynamic_slice_in_dim(total, at, size.keys, 2)
                return lax.dynamic_update_slice_in_dim(total, more, at, 2)

            dq += product("bkgts,bksh->bkgth", slopes, keys)
            return dq, (add(dk, slopes, mine), add(dv, weights.astype(v.dtype), grads), dbias)

        start = jnp.zeros(mine.shape), sums
        dq, sums = lax.fori_loop(0, visits.count[i], visit, start)
        return sums, dq.astype(q.dtype)

    zeros = (
        jnp.zeros(k.shape),
        jnp.zeros(v.shape),
        None if bias is None else jnp.zeros_like(bias),
    )
    (dk, dv, dbias), dq = lax.scan(tile, zeros, jnp.arange(visits.count.size))
    dq = jnp.moveaxis(dq, 0, 3).reshape(q.shape)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dbias, None


def _put(bias: Array, slopes: Array, size: Tiles, at: tuple[Any, Any]) -> Array:
    """The bias's gradient with that of tiles i and j, which are visited once: it is no sum yet."""
    shared = tuple(axis for axis in range(3) if bias.shape[axis] == 1)
    mine = slopes.sum(shared, keepdims=True).astype(bias.dtype)
    return lax.dynamic_update_slice(bias, mine, (0, 0, 0, at[0] * size.queries, at[1] * size.keys))


def _forward(
    kind: Kind, q: Array, k: Array, v: Array, bias: Array | None, context: Context
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    out, lse = forward(kind, q, k, v, bias, context)
    return (out, lse), (q, k, v, bias, context, out, lse)


_attend = jax.custom_vjp(forward, nondiff_argnums=(0,))
_attend.defvjp(_forward, backward)
