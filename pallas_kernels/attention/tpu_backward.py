"""The gradients of attention on TPU: scores are made again, tile by tile, from the log-sum-exp.

One kernel holds a tile of keys and visits the queries that see it, one holds a tile of queries and
visits the keys that they see, and one, where there is a bias, holds a tile of both and visits the
rows and heads that share it (Dao 2023, arXiv 2307.08691, has the formulas).
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.
# i and j count tiles of queries and of keys, g the query heads of a key/value head.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.sinks import slope_of_sinks
from jscale.pallas_kernels.attention.tpu_tiles import (
    LANES,
    Problem,
    Tables,
    inside,
    operands,
    reach,
    scores_in,
    seen_in,
    tables,
    visit,
)
from jscale.pallas_kernels.block import product


def backward(
    problem: Problem, saved: tuple[Any, ...], slopes: tuple[Array, Array]
) -> tuple[Array, Array, Array, Any, Any, None, None]:
    """The gradients of q, k, v, the bias and the sinks, in float32 sums."""
    q, k, v, bias, sinks, alibi, places, out, lse = saved
    g, more = slopes
    dot = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - more
    heads = dict(q=q, k=k, v=v, g=g)
    given = heads, dict(lse=lse, dot=dot), bias, alibi, places
    dk, dv = _of_keys(problem, *given)
    dbias = None if bias is None else _of_bias(problem, *given)
    dq, *sums = _of_queries(problem, *given, summed=sinks is not None)
    dsinks = None if sinks is None else slope_of_sinks(sinks, lse, sums[0][:, :, 0], dot, more)
    return dq, dk, dv, dbias, dsinks, None, None


def _of_keys(
    problem: Problem, heads: Any, rows: Any, bias: Any, slopes: Any, places: Any
) -> tuple[Array, Array]:
    q, k, v = (heads[name] for name in "qkv")
    (B, N, _, H), K, V, (_, s) = q.shape, k.shape[1], v.shape[-1], problem.size
    known, steps = tables(problem, places, slopes, of_keys=True)

    def where(b: Any, n: Any, j: Any, g: Any, step: Any, refs: Any) -> tuple[Any, ...]:
        return b, n * (N // K) + g, reach(problem, refs, True, b, j, step)[0], j

    read = operands(problem, heads, rows, bias, places, where, turned=True)
    block = lambda size: pl.BlockSpec((1, 1, s, size), lambda b, n, j, g, step, _: (b, n, j, 0))
    return pl.pallas_call(
        partial(_keys_kernel, problem, N // K, steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, K, problem.counts[1], N // K, steps),
            in_specs=[read.specs],
            out_specs=(block(H), block(V)),
            scratch_shapes=[pltpu.VMEM((s, H), jnp.float32), pltpu.VMEM((s, V), jnp.float32)],
        ),
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        compiler_params=interpret.tpu_parameters(*["parallel"] * 3, *["arbitrary"] * 2),
        interpret=interpret.tpu(),
        name="attention_backward_keys",
    )(known, read.arrays)


def _keys_kernel(
    problem: Problem,
    group: int,
    steps: int,
    known: Tables,
    blocks: Any,
    *written: Any,
) -> None:
    dk, dv, dk_sums, dv_sums = written
    b, kv, j, member, step = (pl.program_id(axis) for axis in range(5))
    i, there = reach(problem, known, True, b, j, step)
    some, every = visit(problem, known, b, i, j)
    slope = None if known.slopes is None else known.slopes[kv * group + member]

    @pl.when((step == 0) & (member == 0))
    def _() -> None:
        dk_sums[...] = jnp.zeros_like(dk_sums)
        dv_sums[...] = jnp.zeros_like(dv_sums)

    def add(masked: bool) -> None:
        q, k, v, g = (blocks[name][0, 0] for name in "qkvg")
        if masked:
            q, g = (inside(x, i, problem.queries) for x in (q, g))
        lse, dot = blocks["lse"][0, 0], blocks["dot"][0, 0]
        weights, ds, bend = _slopes(
            problem, blocks, slope, (q, k, v, g), (lse, dot), (i, j), masked
        )
        ds = ds if bend is None else ds * bend
        dv_sums[...] += product(weights.astype(g.dtype), g, (1, 0))
        dk_sums[...] += product(ds.astype(q.dtype), q, (1, 0))

    pl.when(there & some & every)(partial(add, False))
    pl.when(there & some & jnp.logical_not(every))(partial(add, True))

    @pl.when((step == steps - 1) & (member == group - 1))
    def _() -> None:
        dk[0, 0] = (dk_sums[...] * problem.scale).astype(dk.dtype)
        dv[0, 0] = dv_sums[...].astype(dv.dtype)


def _slopes(
    problem: Problem,
    blocks: Any,
    slope: Any,
    tiles: tuple[Any, Any, Any, Any],
    rows: tuple[Any, Any],
    at: tuple[Any, Any],
    masked: bool,
) -> tuple[Any, Any, Any]:
    """The weights of a tile, the slope of its scores, and the scores' own by scale · q kᵀ.

    As [t, s] where the log-sum-exps come as a column, as [s, t] where they come as a row.
    """
    (q, k, v, g), (lse, dot) = tiles, rows
    turned = lse.shape[0] == 1
    scores, bend = scores_in(problem, blocks, slope, q, k, at, turned)
    weights = jnp.exp(scores - lse)
    back = product(v, g, (1, 1)) if turned else product(g, v, (1, 1))
    ds = weights * (back - dot)
    if masked:
        seen = seen_in(problem, blocks, *at, turned)
        weights, ds = jnp.where(seen, weights, 0.0), jnp.where(seen, ds, 0.0)
        bend = None if bend is None else jnp.where(seen, bend, 0.0)
    return weights, ds, bend


def _column(row: Any) -> Any:
    """A row [1, t] as columns, [t, 128]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _of_queries(
    problem: Problem, heads: Any, rows: Any, bias: Any, slopes: Any, places: Any, *, summed: bool
) -> tuple[Array, ...]:
    """The gradient of the queries, and if `summed` the sums of their scores' slopes."""
    q = heads["q"]
    (B, N, _, H), (t, _) = q.shape, problem.size
    known, steps = tables(problem, places, slopes, of_keys=False)

    def where(b: Any, n: Any, i: Any, step: Any, refs: Any) -> tuple[Any, ...]:
        return b, n, i, reach(problem, refs, False, b, i, step)[0]

    read = operands(problem, heads, rows, bias, places, where)
    return pl.pallas_call(
        partial(_queries_kernel, problem, steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N, problem.counts[0], steps),
            in_specs=[read.specs],
            out_specs=[
                pl.BlockSpec((1, 1, t, H), lambda b, n, i, step, _: (b, n, i, 0)),
                pl.BlockSpec((1, 1, 1, t), lambda b, n, i, step, _: (b, n, 0, i)),
            ][: 1 + summed],
            scratch_shapes=[
                *[pltpu.VMEM((t, LANES), jnp.float32)] * (2 + summed),
                pltpu.VMEM((t, H), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, N, 1, q.shape[2]), jnp.float32),
        ][: 1 + summed],
        compiler_params=interpret.tpu_parameters(*["parallel"] * 3, "arbitrary"),
        interpret=interpret.tpu(),
        name="attention_backward_queries",
    )(known, read.arrays)


def _queries_kernel(
    problem: Problem,
    steps: int,
    known: Tables,
    blocks: Any,
    dq: Any,
    *written: Any,
) -> None:
    *summed, lse, dot, sums = written  # of scores' slopes, if wanted: the result, and so far
    b, n, i, step = (pl.program_id(axis) for axis in range(4))
    j, there = reach(problem, known, False, b, i, step)
    some, every = visit(problem, known, b, i, j)
    slope = None if known.slopes is None else known.slopes[n]

    @pl.when(step == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)
        lse[...], dot[...] = _column(blocks["lse"][0, 0]), _column(blocks["dot"][0, 0])
        for total in summed[1:]:
            total[...] = jnp.zeros_like(total)

    def add(masked: bool) -> None:
        q, k, v, g = (blocks[name][0, 0] for name in "qkvg")
        k = inside(k, j, problem.keys) if masked else k
        columns = lse[:, :1], dot[:, :1]
        _, ds, bend = _slopes(problem, blocks, slope, (q, k, v, g), columns, (i, j), masked)
        for total in summed[1:]:
            total[...] += jnp.broadcast_to(ds.sum(1, keepdims=True), total.shape)
        ds = ds if bend is None else ds * bend
        sums[...] += product(ds.astype(k.dtype), k, (1, 0))

    pl.when(there & some & every)(partial(add, False))
    pl.when(there & some & jnp.logical_not(every))(partial(add, True))

    @pl.when(step == steps - 1)
    def _() -> None:
        dq[0, 0] = (sums[...] * problem.scale).astype(dq.dtype)
        if summed:
            summed[0][0, 0] = summed[1][...].T[:1]


def _of_bias(
    problem: Problem, heads: Any, rows: Any, bias: Array, slopes: Any, places: Any
) -> Array:
    (B, N), (t, s) = heads["q"].shape[:2], problem.size
    own = bias.shape[:2]  # of batch rows and heads; the others share
    shared = B // own[0], N // own[1]
    known, _ = tables(problem, places, slopes, of_keys=False)

    def where(
        b: Any, n: Any, i: Any, j: Any, row: Any, head: Any, refs: Any
    ) -> tuple[Any, Any, Any, Any]:
        return b * shared[0] + row, n * shared[1] + head, i, j

    read = operands(problem, heads, rows, bias, places, where)
    return pl.pallas_call(
        partial(_bias_kernel, problem, shared),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(*own, *problem.counts, *shared),
            in_specs=[read.specs],
            out_specs=pl.BlockSpec((1, 1, t, s), lambda b, n, i, j, row, head, _: (b, n, i, j)),
            scratch_shapes=[pltpu.VMEM((t, s), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(bias.shape, bias.dtype),
        compiler_params=interpret.tpu_parameters(*["parallel"] * 4, *["arbitrary"] * 2),
        interpret=interpret.tpu(),
        name="attention_backward_bias",
    )(known, read.arrays)


def _bias_kernel(
    problem: Problem, shared: tuple[int, int], known: Tables, blocks: Any, dbias: Any, sums: Any
) -> None:
    own_row, own_head, i, j, row, head = (pl.program_id(axis) for axis in range(6))
    b, n = own_row * shared[0] + row, own_head * shared[1] + head
    some, every = visit(problem, known, b, i, j)
    slope = None if known.slopes is None else known.slopes[n]

    @pl.when((row == 0) & (head == 0))
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    def add(masked: bool) -> None:
        tiles = tuple(blocks[name][0, 0] for name in "qkvg")
        columns = tuple(_column(blocks[name][0, 0])[:, :1] for name in ("lse", "dot"))
        sums[...] += _slopes(problem, blocks, slope, tiles, columns, (i, j), masked)[1]

    pl.when(some & every)(partial(add, False))
    pl.when(some & jnp.logical_not(every))(partial(add, True))

    @pl.when((row == shared[0] - 1) & (head == shared[1] - 1))
    def _() -> None:
        dbias[0, 0] = sums[...].astype(dbias.dtype)
