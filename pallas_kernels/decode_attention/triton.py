"""Decode attention as a GPU kernel, lowered through Triton: contexts split over many programs.

One program takes the tokens of one sequence in one tile, one key/value head, and a share of the
context; the shares' results are merged by their log Σ exp (Dao et al. 2023, "Flash-Decoding").
Keys are found one by one through the table, so that a tile of them need not be a page.
"""

# T tokens, S sequences, M pages of a sequence, P pages, C places in a page, N heads, K key/value
# heads, G query heads for each, H head size, V value size. O parts, D shares of a context, R rows
# of a tile of t tokens: the query heads of token 0, then of token 1, …

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.triton_tiles import LOG2E, wide
from jscale.pallas_kernels.block import product
from jscale.pallas_kernels.decode_attention.call import Call
from jscale.pallas_kernels.decode_attention.pages import LIMITS, Pages
from jscale.pallas_kernels.decode_attention.parts import Parts, Size, cut, most
from jscale.pallas_kernels.decode_attention.sequences import Sequences

PROGRAMS = 264  # two for each processor of an H100
LONGEST = 65_535  # a grid's second and third axis


class Tiles(NamedTuple):
    """Tokens and keys in a tile, and into how many shares contexts are split."""

    tokens: int
    keys: int
    shares: int


@dataclass(frozen=True)
class Problem:
    """What of a call is known while tracing."""

    mask: Mask
    scale: float
    cap: float | None
    size: Tiles
    group: int
    pages: int  # of a sequence, at most
    heads: tuple[int, int]  # sizes of keys and of values
    dtype: Any  # of the products

    @property
    def rows(self) -> int:
        """The rows of a tile: a power of two, and 16 at least, as products need it."""
        return wide(self.size.tokens * self.group)


class Arrays(NamedTuple):
    """What a program reads (or blocks of it); None for what there is not."""

    parts: Parts
    table: Any
    q: Any
    pages: Pages
    slopes: Any


def sizes(call: Call) -> Tiles:
    """Tiles of a sequence's share of the tokens, and shares enough to keep an H100 busy.

    A tile of 64 × 64 scores and its sums stay in the registers of four warps; float32, which is
    multiplied without tensor cores, holds its factors there as well, and has less.
    """
    group, small = call.heads // call.kv_heads, call.dtype == "float32"
    share = 1 << (-(-call.tokens // call.sequences) - 1).bit_length()
    tokens = min(share, max(1, (32 if small else 64) // group))
    context = call.pages * call.places
    keys = min(32 if small else 64, wide(context))
    parts = most(call.tokens, call.sequences, Size(tokens, 1)) * call.kv_heads
    return Tiles(tokens, keys, max(1, min(PROGRAMS // parts, context // (4 * keys), LONGEST)))


def refuses(call: Call) -> str | None:
    """Why the kernel cannot compute a call; None if it can."""
    if call.dtype not in ("bfloat16", "float16", "float32"):
        return f"computes bfloat16, float16 and float32 only, not {call.dtype}"
    if not (call.tokens and call.sequences and call.pages and call.places):
        return "needs a token, a sequence and a page"
    if max(call.head, call.value) > 256:
        return "needs heads of up to 256"
    if call.stored in LIMITS and 2**31 <= numbers(call) <= 2**32:
        return "addresses pages of one-byte numbers below 2 GiB, or above 4 GiB, only"
    if call.kv_heads > LONGEST:
        return f"takes up to {LONGEST} key/value heads"
    return None


def numbers(call: Call) -> int:
    """How many keys' or values' numbers there are; between 2³¹ and 2³² of them, Pallas's offsets,
    which are of 32 bits up to 2³² bytes, would overflow."""
    return call.count * call.kv_heads * call.places * max(call.head, call.value)


def triton(
    q: Float[Array, "T N H"],
    pages: Pages,
    sequences: Sequences,
    mask: Mask,
    scores: Scores,
    size: Tiles | None = None,
) -> Float[Array, "T N V"]:
    """As `reference`; products in the wider dtype of `q` and whole pages, sums in float32."""
    (T, N, H), (P, K, C, V), M = q.shape, pages.v.shape, sequences.table.shape[1]
    size = size or sizes(Call.of(q, pages, sequences, mask))
    dtype = q.dtype if pages.k_scales is not None else jnp.promote_types(q.dtype, pages.k.dtype)
    problem = Problem(
        *(mask, float(scores.of(H)), scores.cap, size, N // K, M), (H, V), jnp.dtype(dtype)
    )
    parts = cut(sequences, T, C, mask, Size(size.tokens, 1))
    rows = q.astype(dtype).reshape(T, K, N // K, H).swapaxes(0, 1).reshape(K, -1, H)
    slopes = None if scores.slopes is None else scores.slopes.astype(jnp.float32).reshape(K, -1)
    table = jnp.clip(sequences.table, 0, P - 1).astype(jnp.int32)
    out, lse = _call(problem, Arrays(parts, table, rows, pages, slopes))
    out, lse = (
        x.reshape(-1, K, T, N // K, *x.shape[3:]).swapaxes(1, 2).reshape(-1, T, N, *x.shape[3:])
        for x in (out, lse)
    )
    # Rows of nobody's tokens were never written.
    owned = sequences.owners(T)[2][:, None]
    merged = _merge(jnp.where(owned[..., None], out, 0.0), jnp.where(owned, lse, LEAST), scores)
    return jnp.where(owned[..., None], merged, 0.0).astype(q.dtype)


def _merge(
    out: Float[Array, "D T N V"], lse: Float[Array, "D T N"], scores: Scores
) -> Float[Array, "T N V"]:
    """The result over all shares of the contexts, and the sinks; `lse` is in powers of two."""
    sinks = jnp.full(lse.shape[-1:], LEAST)
    sinks = sinks if scores.sinks is None else scores.sinks.astype(jnp.float32) * LOG2E
    peak = jnp.maximum(lse.max(0), sinks)
    weights = jnp.exp2(lse - peak)
    total = weights.sum(0) + (0.0 if scores.sinks is None else jnp.exp2(sinks - peak))
    return (out * weights[..., None]).sum(0) / total[..., None]


def _call(problem: Problem, arrays: Arrays) -> tuple[Float[Array, "D K R V"], Any]:
    p, size, (K, rows, _) = problem, problem.size, arrays.q.shape
    (H, V), (P, _, C, _), R = p.heads, arrays.pages.k.shape, p.rows
    filled = -(-rows // (size.tokens * p.group)) * size.tokens * p.group + R
    whole = lambda x: pl.BlockSpec(x.shape, lambda o, h, d: (0,) * x.ndim)
    mine: Any = lambda width: pl.BlockSpec((P, None, C, wide(width)), lambda o, h, d: (0, h, 0, 0))
    scale: Any = pl.BlockSpec((P, None, C), lambda o, h, d: (0, h, 0))
    quantised = arrays.pages.k_scales is not None
    specs = Arrays(
        jax.tree.map(whole, arrays.parts),
        whole(arrays.table),
        pl.BlockSpec((None, filled, wide(H)), lambda o, h, d: (h, 0, 0)),
        Pages(
            *(mine(H), mine(V)),
            *((scale, scale) if quantised else (None, None)),
        ),
        None if arrays.slopes is None else pl.BlockSpec((None, p.group), lambda o, h, d: (h, 0)),
    )
    return pl.pallas_call(
        partial(_kernel, p),
        grid=(arrays.parts.tile.size, K, size.shares),
        in_specs=[specs],
        out_specs=[
            pl.BlockSpec((None, None, filled, wide(V)), lambda o, h, d: (d, h, 0, 0)),
            pl.BlockSpec((None, None, filled), lambda o, h, d: (d, h, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((size.shares, K, rows, V), jnp.float32),
            jax.ShapeDtypeStruct((size.shares, K, rows), jnp.float32),
        ],
        interpret=interpret.gpu(),
        name="decode_attention",
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    )(arrays)


def _kernel(p: Problem, arrays: Arrays, out: Any, lse: Any) -> None:
    """One part, one key/value head, one share of the context."""
    o, share, parts = pl.program_id(0), pl.program_id(2), arrays.parts
    places, (H, V), R = arrays.pages.k.shape[1], p.heads, p.rows
    begin, end, shift = parts.begin[o], parts.end[o], parts.shift[o]
    stop = jnp.minimum(parts.length[o], p.pages * places)
    start = parts.tile[o] * (p.size.tokens * p.group)
    row = start + jnp.arange(R)
    token = lax.div(row, jnp.full_like(row, p.group))
    own = (begin <= token) & (token < end)
    load = lambda where, keep: plgpu.load(where, mask=keep, other=jnp.zeros((), where.dtype))
    q = load(arrays.q.at[pl.ds(start, R), :], own[:, None] & (jnp.arange(wide(H)) < H)[None, :])
    slope = None
    if arrays.slopes is not None:
        slope = load(arrays.slopes.at[lax.rem(row, jnp.full_like(row, p.group))], own)

    def visit(j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        peak, total, sums = carry
        key = j * p.size.keys + jnp.arange(p.size.keys)
        some = (key < stop) & p.mask.some(begin + shift, end - 1 + shift, key, key)
        page = load(arrays.table.at[parts.sequence[o], key // places], some)
        tile = lambda x, width: _tile(load, x, (page, key % places), some, width).astype(p.dtype)
        row_of = lambda x: load(x.at[page, key % places], some)[None, :]
        made = product(q, tile(arrays.pages.k, H), (1, 1)) * p.scale
        if arrays.pages.k_scales is not None:
            made *= row_of(arrays.pages.k_scales)
        if p.cap is not None:
            made = p.cap * jnp.tanh(made / p.cap)
        back = (token + shift)[:, None] - key[None, :]
        if slope is not None:
            made -= slope[:, None] * jnp.abs(back).astype(jnp.float32)
        seen = p.mask.sees((token + shift)[:, None], key[None, :])
        seen &= own[:, None] & some[None, :]
        made = jnp.where(seen, made * LOG2E, LEAST)
        new = jnp.maximum(peak, jnp.max(made, axis=1))
        # Where nothing was seen yet, 2^(−1e30 − 0) is 0, but 2^(−1e30 + 1e30) is not.
        ground = jnp.where(new == LEAST, 0.0, new)
        weights, shrink = jnp.exp2(made - ground[:, None]), jnp.exp2(peak - ground)
        total = total * shrink + jnp.sum(weights, axis=1)
        if arrays.pages.v_scales is not None:
            weights *= row_of(arrays.pages.v_scales)
        sums = sums * shrink[:, None] + product(weights.astype(p.dtype), tile(arrays.pages.v, V))
        return new, total, sums

    tiles = p.size.keys
    first, last = parts.first[o] * places, jnp.minimum(parts.last[o] * places, stop)
    first, last = lax.div(first, tiles), lax.div(last + tiles - 1, tiles)
    each = lax.div(last - first + p.size.shares - 1, p.size.shares)
    first = first + share * each
    none = jnp.full((R,), LEAST, jnp.float32)
    carry = none, jnp.zeros_like(none), jnp.zeros((R, wide(V)), jnp.float32)
    peak, total, sums = lax.fori_loop(first, jnp.minimum(first + each, last), visit, carry)
    found = jnp.where(total == 0, 1.0, total)
    keep = own[:, None] & (jnp.arange(wide(V)) < V)[None, :]
    plgpu.store(out.at[pl.ds(start, R), :], sums / found[:, None], mask=keep)
    plgpu.store(
        lse.at[pl.ds(start, R)], jnp.where(total == 0, LEAST, peak + jnp.log2(found)), mask=own
    )


def _tile(load: Any, x: Any, at: tuple[Any, Any], keep: Any, width: int) -> Any:
    """Keys or values at (page, place), and 0 where they are not to be kept."""
    shape = keep.size, x.shape[-1]
    column = jnp.arange(x.shape[-1])[None, :]
    indices = (jnp.broadcast_to(i, shape) for i in (at[0][:, None], at[1][:, None], column))
    return load(x.at[tuple(indices)], keep[:, None] & (column < width))
