"""Decode attention in plain XLA: all parts at once, a few pages of each at a time.

A part is the tokens of one sequence in one tile. Only the pages in hand are gathered, and only the
scores against them are held; a running maximum and sum make the softmax exact (Milakov &
Gimelshein 2018, arXiv 1805.02867). There are as many steps as the longest context in sight needs.
"""

# T tokens, S sequences, M pages of a sequence, P pages, C places in a page, N heads, K key/value
# heads, G query heads for each, H head size, V value size. O parts of t tokens, s keys in hand.

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.decode_attention.pages import Pages
from jscale.pallas_kernels.decode_attention.parts import Size, cut
from jscale.pallas_kernels.decode_attention.sequences import Sequences

KEYS = 128  # taken at a time, or one page: on CPU, 64 and 128 won
TOKENS = 128  # in a tile, at most

product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def sizes(tokens: int, sequences: int, pages: int, places: int) -> Size:
    """Tiles about as long as a sequence's share of the tokens: shorter than the tile it is waste,
    longer it has its pages gathered again for each tile."""
    share = -(-tokens // sequences)
    return Size(min(TOKENS, 1 << (share - 1).bit_length()), max(1, min(pages, KEYS // places)))


def paged(
    q: Float[Array, "T N H"],
    pages: Pages,
    sequences: Sequences,
    mask: Mask,
    scores: Scores,
    size: Size | None = None,
) -> Float[Array, "T N V"]:
    """As `reference`; sums in float32, products in the wider dtype of `q` and whole pages."""
    (T, N, H), (_, K, C, V) = q.shape, pages.v.shape
    S, M = sequences.table.shape
    size = size or sizes(T, S, M, C)
    parts = cut(sequences, T, C, mask, size)
    dtype = q.dtype if pages.k_scales is not None else jnp.promote_types(q.dtype, pages.k.dtype)
    tokens = parts.tile[:, None] * size.tokens + jnp.arange(size.tokens)  # [O, t]
    own = (parts.begin[:, None] <= tokens) & (tokens < parts.end[:, None])
    positions = tokens + parts.shift[:, None]
    mine = jnp.take(q.astype(dtype), tokens, 0, mode="clip").reshape(*tokens.shape, K, N // K, H)
    mine = jnp.moveaxis(mine, 1, 3)  # [O, K, G, t, H]
    low, high = parts.begin + parts.shift, parts.end - 1 + parts.shift
    lift = lambda x: x[:, None, None]  # over K and G
    per_head = lambda x: x.astype(jnp.float32).reshape(K, N // K, 1)

    def take(stored: Array, at: Array) -> Array:
        """A group's part of keys, values or scales: [O, K, s, …]."""
        x = jnp.take(stored, at, 0, mode="clip").swapaxes(1, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def visit(step: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, out = carry
        group = parts.first + step
        at = group[:, None] * size.pages + jnp.arange(size.pages)
        at = sequences.table[parts.sequence[:, None], jnp.minimum(at, M - 1)]
        keys = group[:, None] * (size.pages * C) + jnp.arange(size.pages * C)  # [O, s]
        there = (keys < jnp.minimum(parts.length, M * C)[:, None]) & (group < parts.last)[:, None]
        seen = mask.sees(positions[:, :, None], keys[:, None]) & own[:, :, None] & there[:, None]
        made = product("okgth,oksh->okgts", mine, take(pages.k, at).astype(dtype))
        made *= scores.of(H)
        if pages.k_scales is not None:
            made *= take(pages.k_scales, at)[:, :, None, None]
        made = bend(made, scores, lift(positions[:, :, None] - keys[:, None]))
        made = jnp.where(lift(seen), made, LEAST)
        new = jnp.maximum(peak, made.max(-1))
        weights = jnp.where(lift(seen), jnp.exp(made - new[..., None]), 0.0)
        shrink, sums = jnp.exp(peak - new), weights.sum(-1)
        # What no token sees may be no number, which 0 does not cancel.
        any_sees = mask.some(low[:, None], high[:, None], keys, keys) & there
        v = jnp.where(any_sees[:, None, :, None], take(pages.v, at).astype(dtype), 0.0)
        if pages.v_scales is not None:
            scale = jnp.where(any_sees[:, None], take(pages.v_scales, at), 0.0)
            weights *= scale[:, :, None, None]
        more = product("okgts,oksh->okgth", weights.astype(dtype), v.astype(dtype))
        return new, total * shrink + sums, out * shrink[..., None] + more

    zeros = jnp.zeros(mine.shape[:-1])
    start = zeros + LEAST, zeros, jnp.zeros((*zeros.shape, V))
    if scores.sinks is not None:  # as if a key with this score and the value 0 came first
        start = zeros + per_head(scores.sinks), zeros + 1.0, start[2]
    steps = (parts.last - parts.first).max(initial=0)
    _, total, out = lax.fori_loop(0, steps, visit, start)
    out = out / jnp.where(total == 0, 1.0, total)[..., None]
    out = jnp.moveaxis(out, 3, 1).reshape(*tokens.shape, N, V).astype(q.dtype)
    return jnp.zeros((T, N, V), q.dtype).at[jnp.where(own, tokens, T)].set(out, mode="drop")


def bend(made: Any, scores: Scores, back: Any) -> Any:
    """Scaled products [O, K, G, t, s] with a cap and slopes; `back` is how far back a key is."""
    if scores.cap is not None:
        made = scores.cap * jnp.tanh(made / scores.cap)
    if scores.slopes is not None:
        slopes = scores.slopes.astype(jnp.float32).reshape(*made.shape[1:3], 1, 1)
        made -= slopes * jnp.abs(back)
    return made
