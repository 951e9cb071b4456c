"""Attention tile by tile in plain XLA: no array of T × S, and work only where the mask allows.

Scores of one tile of queries against one tile of keys are made, used and forgotten; a running
maximum and sum make the softmax exact (Milakov & Gimelshein 2018, arXiv 1805.02867). The backward
pass makes them again from the saved log-sum-exp (Dao et al. 2022, arXiv 2205.14135). Each tile of
queries visits the keys between the first and the last tile that the mask lets it see.
"""

# B batch, T query length, S key length, K key/value heads, G query heads for each, H head size.
# i and j count tiles of queries and of keys, t and s are places in a tile.

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jscale.pallas_kernels.attention.mask import Mask

LEAST = -1e30  # stands for −∞, without its not-a-numbers
PADDING = np.iinfo(np.int32).min  # the segment of places added to fill a tile


@dataclass(frozen=True)
class Tiles:
    """How many queries and how many keys are taken at a time."""

    queries: int
    keys: int


def tiles(queries: int, keys: int) -> Tiles:
    """Sizes that were fastest on CPU: up to 128 for short sequences, 256 from 2,048 on."""
    most = 128 if max(queries, keys) < 2048 else 256

    def even(length: int) -> int:  # tiles of one size that add few places to the length
        count = -(-length // most)
        return -(-length // (8 * count)) * 8

    return Tiles(even(queries), even(keys))


class Places(NamedTuple):
    """Positions and segments of all queries and keys, and what each tile of queries visits.

    Without a first axis of B where they are the same for all rows; segments are None where there
    is only one and nothing was filled up.
    """

    positions: tuple[Int[Array, "*B T"], Int[Array, "*B S"]]
    segments: tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None
    first: Int[Array, "i"]  # the first tile of keys that tile i of the queries visits
    end: Int[Array, "i"]  # and the one after the last


def blockwise(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    positions: tuple[Array, Array] | None,
    segments: tuple[Array, Array] | None,
    size: Tiles | None = None,
) -> Float[Array, "B T N H"]:
    """As `reference`, in memory that grows with T + S; sums in float32, products in `q`'s dtype."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    size = size or tiles(T, S)
    padded = -(-T // size.queries) * size.queries, -(-S // size.keys) * size.keys
    heads_first = lambda x, length: fill(x.swapaxes(1, 2), length, 2)
    grouped = heads_first(q, padded[0]).reshape(B, K, N // K, padded[0], H)
    places = look(mask, size, (T, S), positions, segments)
    k, v = heads_first(k, padded[1]), heads_first(v, padded[1])
    out = _attend(mask, size, grouped, k, v, places)
    return out.reshape(B, N, padded[0], H)[:, :, :T].swapaxes(1, 2)


def fill(x: Array, length: int, axis: int, value: int = 0) -> Array:
    """`x` with `value` added at the end of an axis up to `length`."""
    more = length - x.shape[axis]
    if not more:
        return x
    widths = [(0, more if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def look(
    mask: Mask,
    size: Tiles,
    lengths: tuple[int, int],
    positions: tuple[Array, Array] | None,
    segments: tuple[Array, Array] | None,
) -> Places:
    """Places of queries and keys, filled to whole tiles, and the tiles that must be visited."""
    T, S = lengths
    steps = size.queries, size.keys
    whole = [-(-length // step) * step for length, step in zip(lengths, steps, strict=True)]
    if positions is None:
        positions = jnp.arange(S - T, S), jnp.arange(S)
    if segments is None and tuple(whole) != lengths:
        segments = jnp.zeros(T, jnp.int32), jnp.zeros(S, jnp.int32)
    edge = [fill(x, n, x.ndim - 1) for x, n in zip(positions, whole, strict=True)]
    # Filled-up queries and keys are of different segments, so that none sees another.
    extra = PADDING, PADDING + 1
    marks = segments and tuple(
        fill(x.astype(jnp.int32), n, x.ndim - 1, value)
        for x, n, value in zip(segments, whole, extra, strict=True)
    )
    seen = needed(mask, size, ranges(positions, lengths, steps))
    if segments is not None:
        (low, high), (least, most) = ranges(segments, lengths, steps)
        seen &= (high[:, None] >= least) & (low[:, None] <= most)
    any_seen = seen.any(-1)
    first = jnp.where(any_seen, seen.argmax(-1), 0)
    end = jnp.where(any_seen, seen.shape[1] - seen[:, ::-1].argmax(-1), 0)
    filled = None if marks is None else (marks[0], marks[1])
    return Places((edge[0], edge[1]), filled, first.astype(jnp.int32), end.astype(jnp.int32))


Ranges = tuple[tuple[Array, Array], tuple[Array, Array]]


def ranges(values: tuple[Array, Array], lengths: tuple[int, int], steps: tuple[int, int]) -> Ranges:
    """The least and the greatest value in each tile, of queries and of keys, over all rows."""

    def of(x: Array, length: int, step: int) -> tuple[Array, Array]:
        whole = -(-length // step) * step
        widths = [(0, 0)] * (x.ndim - 1) + [(0, whole - length)]
        tiled = jnp.pad(x, widths, mode="edge").reshape(-1, whole // step, step)
        return tiled.min((0, 2)), tiled.max((0, 2))

    first, second = (of(*each) for each in zip(values, lengths, steps, strict=True))
    return first, second


def needed(mask: Mask, size: Tiles, found: Ranges) -> Bool[Array, "i j"]:
    """Whether any query of tile i may see any key of tile j, by their positions."""
    (low, high), (least, most) = found
    if not mask.causal:
        return jnp.ones((low.size, least.size), bool)
    seen = high[:, None] >= least
    return seen if mask.window is None else seen & (low[:, None] - most < mask.window)


def allowed(mask: Mask, size: Tiles, places: Places, i: Any, j: Any) -> Bool[Array, "*B t s"]:
    """Which keys of tile j each query of tile i may see."""
    cut = lambda pair: (
        lax.dynamic_slice_in_dim(pair[0], i * size.queries, size.queries, pair[0].ndim - 1),
        lax.dynamic_slice_in_dim(pair[1], j * size.keys, size.keys, pair[1].ndim - 1),
    )
    queries, keys = (x.reshape(-1, x.shape[-1]) for x in cut(places.positions))
    seen = mask.allows(queries, keys)
    if places.segments is not None:
        queries, keys = (x.reshape(-1, x.shape[-1]) for x in cut(places.segments))
        seen &= queries[:, :, None] == keys[:, None, :]
    return seen[:, None, None]  # over heads and groups


def scores(q: Array, k: Array, seen: Array) -> Float[Array, "B K G t s"]:
    """q kᵀ / √H in float32, very small where a key is not seen."""
    logits = product("bkgth,bksh->bkgts", q, k) * q.shape[-1] ** -0.5
    return jnp.where(seen, logits, LEAST)


product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def forward(
    mask: Mask, size: Tiles, q: Array, k: Array, v: Array, places: Places
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T"]]:
    """The result, and the log-sum-exp of each query's scores (0 where it sees nothing)."""
    B, K, G, T, H = q.shape

    def tile(i: Array) -> tuple[Array, Array]:
        mine = lax.dynamic_slice_in_dim(q, i * size.queries, size.queries, 3)

        def visit(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            peak, total, out = carry
            keys, values = (
                lax.dynamic_slice_in_dim(x, j * size.keys, size.keys, 2) for x in (k, v)
            )
            seen = allowed(mask, size, places, i, j)
            logits = scores(mine, keys, seen)
            new = jnp.maximum(peak, logits.max(-1))
            shrink = jnp.exp(peak - new)
            weights = jnp.where(seen, jnp.exp(logits - new[..., None]), 0.0)
            more = product("bkgts,bksh->bkgth", weights.astype(v.dtype), values)
            return new, total * shrink + weights.sum(-1), out * shrink[..., None] + more

        zeros = jnp.zeros((B, K, G, size.queries))
        start = zeros + LEAST, zeros, jnp.zeros((*zeros.shape, H))
        peak, total, out = lax.fori_loop(places.first[i], places.end[i], visit, start)
        some = jnp.where(total == 0, 1.0, total)
        out = (out / some[..., None]).astype(q.dtype)
        return out, jnp.where(total == 0, 0.0, peak) + jnp.log(some)

    outs, sums = lax.map(tile, jnp.arange(T // size.queries))
    join = lambda x: jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], T, *x.shape[5:])
    return join(outs), join(sums)


def backward(
    mask: Mask, size: Tiles, saved: tuple[Any, ...], g: Float[Array, "B K G T H"]
) -> tuple[Array, Array, Array, None]:
    """The gradients of q, k and v, in float32 sums."""
    q, k, v, places, out, lse = saved
    dot = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    scale = q.shape[-1] ** -0.5

    def tile(sums: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        mine, grads, norms, dots = (
            lax.dynamic_slice_in_dim(x, i * size.queries, size.queries, 3) for x in (q, g, lse, dot)
        )

        def visit(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = carry
            at = j * size.keys
            keys, values = (lax.dynamic_slice_in_dim(x, at, size.keys, 2) for x in (k, v))
            seen = allowed(mask, size, places, i, j)
            logits = scores(mine, keys, seen)
            weights = jnp.where(seen, jnp.exp(logits - norms[..., None]), 0.0)
            slopes = product("bkgth,bksh->bkgts", grads, values) - dots[..., None]
            slopes = (weights * slopes * scale).astype(q.dtype)

            def add(total: Array, *factors: Array) -> Array:
                more = product("bkgts,bkgth->bksh", *factors)
                more += lax.dynamic_slice_in_dim(total, at, size.keys, 2)
                return lax.dynamic_update_slice_in_dim(total, more, at, 2)

            dq += product("bkgts,bksh->bkgth", slopes, keys)
            return dq, add(dk, slopes, mine), add(dv, weights.astype(v.dtype), grads)

        start = jnp.zeros(mine.shape), *sums
        dq, dk, dv = lax.fori_loop(places.first[i], places.end[i], visit, start)
        return (dk, dv), dq.astype(q.dtype)

    zeros = jnp.zeros(k.shape), jnp.zeros(v.shape)
    (dk, dv), dq = lax.scan(tile, zeros, jnp.arange(q.shape[3] // size.queries))
    dq = jnp.moveaxis(dq, 0, 3).reshape(q.shape)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


def _forward(
    mask: Mask, size: Tiles, q: Array, k: Array, v: Array, places: Places
) -> tuple[Array, tuple[Any, ...]]:
    out, lse = forward(mask, size, q, k, v, places)
    return out, (q, k, v, places, out, lse)


_attend = jax.custom_vjp(lambda *inputs: forward(*inputs)[0], nondiff_argnums=(0, 1))
_attend.defvjp(_forward, backward)
