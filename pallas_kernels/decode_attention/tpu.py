"""Decode attention on TPU, through Pallas and Mosaic: pages are copied in while others are used.

The grid is over parts, the tokens of one sequence in one tile; how many there are is known only as
the program runs. A part's pages are copied from where the table says to one of two buffers: while
one is computed with, the other is filled, also across the border from one part to the next. The
parts of a tile follow each other, so that its sums stay in vector memory.

The kernel wants pages in the order of their axes. Where the head size is no multiple of 128, the
compiler gives arrays that enter a program another order, and copies all of them for each program:
let a program that decodes many tokens carry its pages through a loop.
"""

# T tokens, S sequences, M pages of a sequence, P pages, C places in a page, N heads, K key/value
# heads, G query heads for each, H head size, V value size. o counts parts, t tokens in a tile,
# R = t · G rows of one key/value head: its query heads of token 0, then of token 1, …

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.tpu_tiles import LANES
from jscale.pallas_kernels.block import product
from jscale.pallas_kernels.decode_attention.call import Call
from jscale.pallas_kernels.decode_attention.pages import LIMITS, Pages
from jscale.pallas_kernels.decode_attention.parts import Parts, Size, cut
from jscale.pallas_kernels.decode_attention.sequences import Sequences

ROWS = 128  # of queries in a tile, at most
KEYS = 512  # taken at a time, at most
VMEM = 10 * 2**20  # bytes that buffers may take: the compiler's limit is 16 MiB unless told
SMEM = 512 * 2**10  # bytes that the table and the parts may take


@dataclass(frozen=True)
class Problem:
    """What of a call is known while tracing."""

    mask: Mask
    scale: float
    cap: float | None
    size: Size
    group: int
    pages: int  # of a sequence, at most
    dtype: Any  # of the products


class Columns(NamedTuple):
    """A number for each row, [K, R, 1] each; None for what there is not."""

    slopes: Any
    sinks: Any


class Sums(NamedTuple):
    """[K, R, V], and [K, R, 128] twice, each row's number all along it."""

    out: Any
    peaks: Any
    totals: Any


def needs(size: Size, call: Call) -> int:
    """Bytes of VMEM for the buffers of pages, the tiles of queries and results, and the sums."""
    wide = lambda n: -(-n // LANES) * LANES
    width = {"int8": 1, "float8_e4m3fn": 1, "bfloat16": 2}.get(call.stored, 4)
    both, rows = wide(call.head) + wide(call.value), size.tokens * call.heads // call.kv_heads
    pages = 2 * call.kv_heads * size.pages * max(call.places, 32 // width) * both * width
    if call.stored in LIMITS:
        pages += 4 * max(call.kv_heads, 8) * size.pages * wide(call.places) * 4
    tiles = call.kv_heads * rows * (2 * both * 4 + (wide(call.value) + 2 * LANES) * 4)
    keys = wide(size.pages * call.places)
    return pages + tiles + 4 * rows * keys * 4 + 4 * keys * both


def sizes(call: Call) -> Size:
    """Tiles of a sequence's share of the tokens, and as many pages as are 512 keys, if they fit.

    Pages that do not end with a register's tile are taken one at a time: they cannot be laid side
    by side.
    """
    group, C = call.heads // call.kv_heads, call.places
    least = 8 // min(8, group & -group)  # so that rows come in eights
    share = 1 << (-(-call.tokens // call.sequences) - 1).bit_length()
    tokens = max(least, min(share, max(1, ROWS // group)))
    size = Size(tokens, 1 if C % 16 else max(1, min(call.pages, KEYS // C)))
    while needs(size, call) > VMEM and size.pages > 1:
        size = Size(size.tokens, size.pages // 2)
    while needs(size, call) > VMEM and size.tokens > least:
        size = Size(size.tokens // 2, size.pages)
    return size


def refuses(call: Call) -> str | None:
    """Why the kernel cannot compute a call; None if it can."""
    if call.dtype not in ("float32", "bfloat16") or call.stored == "float16":
        return f"computes in float32 and bfloat16, not in {call.dtype} over {call.stored}"
    if not (call.tokens and call.sequences and call.pages and call.places):
        return "needs a token, a sequence and a page"
    size = sizes(call)
    if needs(size, call) > VMEM:
        return "needs smaller pages or heads: two of them must fit in vector memory"
    parts = -(-call.tokens // size.tokens) + call.sequences
    if 4 * (call.sequences * call.pages + 8 * parts) > SMEM:
        return f"needs a table of at most {SMEM // 4} entries, to fit in scalar memory"
    return None


def kernel(
    q: Float[Array, "T N H"],
    pages: Pages,
    sequences: Sequences,
    mask: Mask,
    scores: Scores,
    size: Size | None = None,
) -> Float[Array, "T N V"]:
    """As `reference`; products in the wider dtype of `q` and whole pages, sums in float32.

    Under vmap, one call after another.
    """
    (T, N, H), (P, K, C, V), M = q.shape, pages.v.shape, sequences.table.shape[1]
    size = size or sizes(Call.of(q, pages, sequences, mask))
    dtype = q.dtype if pages.k_scales is not None else jnp.promote_types(q.dtype, pages.k.dtype)
    problem = Problem(mask, scores.of(H), scores.cap, size, N // K, M, jnp.dtype(dtype))
    parts = cut(sequences, T, C, mask, size)
    parts = parts._replace(count=parts.count[None])  # scalar memory holds no bare numbers
    table = jnp.clip(sequences.table, 0, P - 1).astype(jnp.int32).reshape(-1)
    per_row = lambda x: jnp.tile(x.astype(jnp.float32).reshape(K, N // K), (1, size.tokens))
    columns = Columns(
        *(None if x is None else per_row(x)[..., None] for x in (scores.slopes, scores.sinks))
    )
    rows = q.astype(dtype).reshape(T, K, N // K, H).swapaxes(0, 1).reshape(K, -1, H)
    run = sequential_vmap(partial(_call, problem, str(q.dtype)))
    out = run(parts, table, rows, columns, pages)
    out = out.reshape(K, T, N // K, V).swapaxes(0, 1).reshape(T, N, V)
    # Tiles of nobody's tokens were never written.
    return jnp.where(sequences.owners(T)[2][:, None, None], out, jnp.zeros_like(out))


def _call(
    problem: Problem,
    dtype: str,
    parts: Parts,
    table: Array,
    rows: Array,
    columns: Columns,
    pages: Pages,
) -> Float[Array, "K rows V"]:
    (K, _, H), V = rows.shape, pages.v.shape[-1]
    R, n = problem.size.tokens * problem.group, problem.size.pages
    tile = lambda width: pl.BlockSpec((K, R, width), lambda o, parts, table: (0, parts.tile[o], 0))
    still = pl.BlockSpec((K, R, 1), lambda o, parts, table: (0, 0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    stored = [x for x in pages if x is not None]
    return pl.pallas_call(
        partial(_kernel, problem),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(jnp.maximum(parts.count[0], 1),),
            in_specs=[
                tile(H),
                jax.tree.map(lambda _: still, columns),
                jax.tree.map(lambda _: anywhere, pages),
            ],
            out_specs=tile(V),
            scratch_shapes=[
                [pltpu.VMEM((2, n, *x.shape[1:]), x.dtype) for x in stored],
                pltpu.SemaphoreType.DMA((2, len(stored))),
                pltpu.SMEM((1,), jnp.int32),
                Sums(
                    pltpu.VMEM((K, R, V), jnp.float32),
                    pltpu.VMEM((K, R, LANES), jnp.float32),
                    pltpu.VMEM((K, R, LANES), jnp.float32),
                ),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((K, rows.shape[1], V), dtype),
        compiler_params=interpret.tpu_parameters("arbitrary"),
        interpret=interpret.tpu(),
        name="decode_attention",
    )(parts, table, rows, columns, pages)


def _kernel(
    problem: Problem,
    parts: Any,
    table: Any,
    q: Any,
    columns: Columns,
    pages: Pages,
    out: Any,
    *scratch: Any,
) -> None:
    """One part. Each of its groups of pages is waited for after the next one is asked for."""
    buffers, semaphores, turn, sums = scratch
    o, count = pl.program_id(0), parts.count[0]
    last = parts.tile.shape[0] - 1
    neighbour = lambda at: parts.tile[jnp.clip(at, 0, last)] != parts.tile[o]
    copies = partial(_copies, problem, parts, table, pages, buffers, semaphores)

    @pl.when((o == 0) & (count > 0))
    def _() -> None:
        turn[0] = 0
        copies(0, parts.first[0], 0, lambda copy: copy.start())

    @pl.when((o == 0) | neighbour(o - 1))
    def _() -> None:
        sums.out[...] = jnp.zeros_like(sums.out)
        if columns.sinks is None:
            sums.peaks[...] = jnp.full_like(sums.peaks, LEAST)
            sums.totals[...] = jnp.zeros_like(sums.totals)
        else:  # as if a key with this score and the value 0 came first
            sums.peaks[...] = jnp.broadcast_to(columns.sinks[...], sums.peaks.shape)
            sums.totals[...] = jnp.ones_like(sums.totals)

    def visit(group: Any, _: None) -> None:
        slot = turn[0]
        more = group + 1 < parts.last[o]
        then = jnp.where(more, o, jnp.minimum(o + 1, last))

        @pl.when(more | (o + 1 < count))
        def _() -> None:
            after = jnp.where(more, group + 1, parts.first[then])
            copies(then, after, 1 - slot, lambda copy: copy.start())

        copies(o, group, slot, lambda copy: copy.wait())
        turn[0] = 1 - slot
        heads = pages.k.shape[1]
        add = partial(_add, problem, parts, q, columns, buffers, sums, (o, group, slot))
        lax.fori_loop(0, heads, lambda h, _: add(h), None, unroll=heads <= 8)

    lax.fori_loop(parts.first[o], parts.last[o], visit, None)

    @pl.when((o == pl.num_programs(0) - 1) | neighbour(o + 1))
    def _() -> None:
        totals = sums.totals[...][:, :, :1]
        out[...] = (sums.out[...] / jnp.where(totals == 0, 1.0, totals)).astype(out.dtype)


def _copies(
    problem: Problem,
    parts: Any,
    table: Any,
    pages: Pages,
    buffers: Any,
    semaphores: Any,
    *call: Any,
) -> None:
    """Start, or wait for, the copies of those pages of a group of which part o sees something."""
    o, group, slot, act = call
    places, stored = pages.k.shape[2], [x for x in pages if x is not None]
    low, high = parts.begin[o] + parts.shift[o], parts.end[o] - 1 + parts.shift[o]
    for j in range(problem.size.pages):
        page = group * problem.size.pages + j
        least = page * places
        most = jnp.minimum(least + places, parts.length[o]) - 1

        @pl.when(
            problem.mask.some(low, high, least, most) & (least <= most) & (page < problem.pages)
        )
        def _(j: int = j, page: Any = page) -> None:
            there = table[parts.sequence[o] * problem.pages + page]
            for i, (x, buffer) in enumerate(zip(stored, buffers, strict=True)):
                act(pltpu.make_async_copy(x.at[there], buffer.at[slot, j], semaphores.at[slot, i]))


def _add(
    problem: Problem,
    parts: Any,
    q: Any,
    columns: Columns,
    buffers: Any,
    sums: Sums,
    at: Any,
    h: Any,
) -> None:
    """Take the keys in hand into the sums of one key/value head."""
    o, group, slot = at
    keys, values, *scales = buffers
    (n, _, C, H), V, R = keys.shape[1:], values.shape[-1], q.shape[1]
    begin, end, shift = parts.begin[o], parts.end[o], parts.shift[o]
    start, stop = group * (n * C), jnp.minimum(parts.length[o], problem.pages * C)
    whole = lambda x, width: x[slot, :, h].astype(problem.dtype).reshape(n * C, width)
    row = lambda x: jnp.concatenate([x[slot, j, pl.ds(h, 1), :] for j in range(n)], 1)
    token = lax.broadcasted_iota(jnp.int32, (R, n * C), 0)
    token = lax.div(token, jnp.int32(problem.group)) + parts.tile[o] * problem.size.tokens
    key = lax.broadcasted_iota(jnp.int32, (R, n * C), 1) + start
    seen = (begin <= token) & (token < end) & (key < stop)
    seen &= problem.mask.sees(token + shift, key)
    made = product(q[h], whole(keys, H), (1, 1)) * problem.scale
    made = made * row(scales[0]) if scales else made
    if problem.cap is not None:
        made = problem.cap * jnp.tanh(made / problem.cap)
    if columns.slopes is not None:
        made -= columns.slopes[h] * jnp.abs(token + shift - key).astype(jnp.float32)
    made = jnp.where(seen, made, LEAST)
    old = sums.peaks[h][:, :1]
    new = jnp.maximum(old, made.max(1, keepdims=True))
    weights, shrink = jnp.where(seen, jnp.exp(made - new), 0.0), jnp.exp(old - new)
    total = sums.totals[h][:, :1] * shrink + weights.sum(1, keepdims=True)
    sums.peaks[h] = jnp.broadcast_to(new, (R, LANES))
    sums.totals[h] = jnp.broadcast_to(total, (R, LANES))
    if scales:  # where nobody sees, memory may hold what is no number
        weights = jnp.where(seen, weights * row(scales[1]), 0.0)
    key = lax.broadcasted_iota(jnp.int32, (n * C, V), 0) + start
    some = problem.mask.some(begin + shift, end - 1 + shift, key, key) & (key < stop)
    v = whole(values, V)
    v = jnp.where(some, v, jnp.zeros_like(v))
    sums.out[h] = sums.out[h] * shrink + product(weights.astype(v.dtype), v, (1, 0))
