"""Gradients of the Mosaic-GPU kernels of attention: scores are made again, nothing is added twice.

One block sums the gradient of 128 queries, another that of 128 keys and values over all query heads
that share them (Dao 2023, arXiv 2307.08691). Heads above 128 need so many registers for the sums
that one warpgroup has those of 64 keys and the other those of their values.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mosaic_gpu_tiles import (
    ACROSS,
    COMPUTING,
    COPIER,
    DOWN,
    FEW,
    MANY,
    ROWS,
    WGMMA,
    Ring,
    add,
    bounds,
    call,
    constant,
    gather,
    length,
    lift,
    product,
    read,
    scores_in,
    seen_in,
    shared,
)
from jscale.pallas_kernels.attention.triton_tiles import (
    Arrays,
    Given,
    Problem,
    Tiles,
    loop,
    phases,
    visits,
)

STAGES = 2


def queries_pass(
    p: Problem, q: Array, k: Array, v: Array, given: Given, *more: Array
) -> Float[Array, "B T N H"]:
    """The gradient of the queries; `more` are those of the result, log₂ Σ 2^scores and delta."""
    size = Tiles(COMPUTING * ROWS, 64)
    stages = STAGES if p.head + p.value <= 384 else 1  # for want of shared memory
    found = visits(p, size, given.places)
    arrays = gather(p, found, (size.queries, size.keys), (q, k, v), given, *more)
    out = p.rows, length(p, p.queries, size.queries), p.heads, p.head
    (dq,) = call(
        partial(_queries, p, size, phases(found)),
        dict(head=p.heads, tile=pl.cdiv(p.queries, size.queries), row=p.rows),
        arrays,
        [jax.ShapeDtypeStruct(out, q.dtype)],
        [
            shared(COMPUTING, ROWS, p.head, dtype=q.dtype),
            shared(COMPUTING, ROWS, p.value, dtype=q.dtype),
            shared(stages, size.keys, p.head, dtype=k.dtype),
            shared(stages, size.keys, p.value, dtype=v.dtype),
            plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=stages),
        ],
        "attention_queries_backward",
    )
    return dq[:, : p.queries]


def _queries(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, outs: Any, memory: Any
) -> None:
    q, dout, k, v, ready, k_full, v_full, free = memory
    rows = pl.cdiv(p.queries, size.queries)
    i = rows - 1 - lax.axis_index("tile")
    row, head, group = (lax.axis_index(name) for name in ("row", "head", "group"))
    ends = bounds(arrays, p, rows, i)
    ring = Ring((k, v), (k_full, v_full), (free,))

    @pl.when(group == COPIER)
    def _() -> None:
        plgpu.set_max_registers(FEW, action="decrease")
        ring.fill_keys(p, arrays, ends)

    @pl.when(group < COMPUTING)
    def _() -> None:
        plgpu.set_max_registers(MANY, action="increase")
        start = i * size.queries + group * ROWS
        place = row, pl.ds(start, ROWS), head
        for source, buffer in ((arrays.q, q), (arrays.dout, dout)):
            plgpu.copy_gmem_to_smem(source.at[place], buffer.at[group], ready.at[group])
        mine = q.at[group], dout.at[group]
        lse, delta = (
            read(p, ref.at[row, head, pl.ds(start, ROWS)], DOWN, near=False)
            for ref in (arrays.lse, arrays.delta)
        )
        plgpu.barrier_wait(ready.at[group])

        def visit(masked: bool, j: Any, total: Any) -> Any:
            slot = lax.rem(j - ends[0], jnp.int32(k.shape[0]))
            keys, values = (buffer.at[slot] for buffer in ring.buffers)
            plgpu.barrier_wait(ring.full[0].at[slot])
            plgpu.barrier_wait(ring.full[1].at[slot])
            at = start, j * size.keys
            products = product(p, mine[0], keys, True), product(p, mine[1], values, True)
            _, slopes = slopes_in(p, arrays, products, (lse, delta), (head, *at), (masked, False))
            total = add(p, total, slopes.astype(keys.dtype), keys)
            plgpu.barrier_arrive(ring.free[0].at[slot])
            return total

        total = loop(parts, ends, visit, constant(p, 0.0, (ROWS, p.head), WGMMA))
        mine[0][...] = (total * p.scale).astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(mine[0], outs[0].at[place])
        plgpu.wait_smem_to_gmem(0)


def slopes_in(
    p: Problem, arrays: Arrays, products: Any, numbers: Any, at: Any, how: Any
) -> tuple[Any, Any]:
    """The weights of a tile and, up to the scale, the slope of q kᵀ (None where not asked for).

    `products` are q kᵀ and the slope of the result times vᵀ, `numbers` the log-sum-exp and delta
    of each query, `at` the query head and where queries and keys begin, `how` says whether pairs
    are masked, whether the tile is turned, keys by queries, and its layout if not that of wgmma.
    """
    (head, *place), (masked, *laid) = at, how
    begin = place[0], place[1]
    slope = None if arrays.slopes is None else arrays.slopes[head]
    found, inner = scores_in(p, arrays, products[0], slope, begin, *laid)
    across = lift(p, found.shape, *laid).queries
    weights = jnp.exp2(found - across(numbers[0]))
    if masked:
        weights = jnp.where(seen_in(p, arrays, found.shape, begin, *laid), weights, 0.0)
    if products[1] is None:
        return weights, None
    slopes = weights * (products[1] - across(numbers[1]))
    return weights, slopes if inner is None else slopes * inner


def keys_pass(
    p: Problem, q: Array, k: Array, v: Array, given: Given, *more: Array
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K V"]]:
    """The gradients of the keys and of the values."""
    parts = COMPUTING if max(p.head, p.value) <= 128 else 1  # of 64 keys
    size = Tiles(ROWS, parts * ROWS)
    found = visits(p, size, given.places, by_keys=True)
    arrays = gather(p, found, (size.queries, size.keys), (q, k, v), given, *more)
    whole = p.rows, length(p, p.keys, size.keys), p.kv_heads
    dk, dv = call(
        partial(_keys, p, size, phases(found)),
        dict(head=p.kv_heads, tile=pl.cdiv(p.keys, size.keys), row=p.rows),
        arrays,
        [jax.ShapeDtypeStruct((*whole, n), k.dtype) for n in (p.head, p.value)],
        [
            shared(parts, ROWS, p.head, dtype=k.dtype),
            shared(parts, ROWS, p.value, dtype=v.dtype),
            [
                shared(STAGES, ROWS, p.head, dtype=q.dtype),
                shared(STAGES, ROWS, p.value, dtype=q.dtype),
                shared(STAGES, ROWS, dtype=jnp.float32),
                shared(STAGES, ROWS, dtype=jnp.float32),
            ],
            plgpu.Barrier(num_arrivals=2 * parts),
            [plgpu.Barrier(num_barriers=STAGES) for _ in range(4)],
            plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=COMPUTING),
        ],
        "attention_keys_backward",
    )
    return dk[:, : p.keys], dv[:, : p.keys]


def _keys(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, outs: Any, memory: Any
) -> None:
    k, v, buffers, ready, full, free, done = memory
    split = k.shape[0] < COMPUTING
    j, tiles = lax.axis_index("tile"), pl.cdiv(p.keys, size.keys)
    row, head, group = (lax.axis_index(name) for name in ("row", "head", "group"))
    ends = bounds(arrays, p, tiles, j)
    ring = Ring(buffers, full, (free,))
    place = lambda part: (row, pl.ds(j * size.keys + part * ROWS, ROWS), head)

    @pl.when(group == COPIER)
    def _() -> None:
        plgpu.set_max_registers(FEW, action="decrease")
        for part in range(k.shape[0]):
            for source, buffer in ((arrays.k, k), (arrays.v, v)):
                plgpu.copy_gmem_to_smem(source.at[place(part)], buffer.at[part], ready)
        count = ends[3] - ends[0]

        def copies(n: Any) -> Any:
            member = lax.div(n, count)
            queries = pl.ds((ends[0] + n - member * count) * ROWS, ROWS)
            mine = head * p.group + member
            matrices = arrays.q.at[row, queries, mine], arrays.dout.at[row, queries, mine]
            return *matrices, arrays.lse.at[row, mine, queries], arrays.delta.at[row, mine, queries]

        ring.fill(count * p.group, copies)

    def gradients(part: Any, wanted: tuple[bool, bool]) -> None:
        tile, start = (k.at[part], v.at[part]), j * size.keys + part * ROWS
        sums = _sums(p, parts, arrays, ring, tile, (start, ends), wanted)
        if split:  # the other still reads what this one is to overwrite
            plgpu.barrier_arrive(done)
            plgpu.barrier_wait(done)
        for buffer, total in zip(tile, sums, strict=True):
            if total is not None:
                buffer[...] = total.astype(buffer.dtype)
        plgpu.commit_smem()
        for buffer, total, out in zip(tile, sums, outs, strict=True):
            if total is not None:
                plgpu.copy_smem_to_gmem(buffer, out.at[place(part)])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(group < COMPUTING)
    def _() -> None:
        plgpu.set_max_registers(MANY, action="increase")
        plgpu.barrier_wait(ready)
        if not split:
            gradients(group, (True, True))
        else:
            pl.when(group == 0)(lambda: gradients(0, (True, False)))
            pl.when(group == 1)(lambda: gradients(0, (False, True)))


def _sums(
    p: Problem, parts: Any, arrays: Arrays, ring: Ring, tile: Any, where: Any, wanted: Any
) -> tuple[Any, Any]:
    """The gradients of 64 keys and of their values, of which not all may be wanted (None)."""
    (k, v), (start, ends) = tile, where
    first, count = lax.axis_index("head") * p.group, ends[3] - ends[0]

    def visit(member: Any, masked: bool, i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        slot = lax.rem(member * count + i - ends[0], jnp.int32(STAGES))
        q, dout, lse, delta = (buffer.at[slot] for buffer in ring.buffers)
        for barrier in ring.full:
            plgpu.barrier_wait(barrier.at[slot])
        dk, dv = carry
        # Scores turned around, keys by queries: weights are then factors without being moved.
        products = product(p, k, q, True), None if dk is None else product(p, v, dout, True)
        numbers = read(p, lse, ACROSS), None if dk is None else read(p, delta, ACROSS)
        plgpu.commit_smem()  # read, before the copier writes there anew
        at = first + member, i * ROWS, start
        weights, slopes = slopes_in(p, arrays, products, numbers, at, (masked, True))
        if dv is not None:
            dv = add(p, dv, weights.astype(dout.dtype), dout)
        if dk is not None:
            dk = add(p, dk, slopes.astype(q.dtype), q)
        plgpu.barrier_arrive(ring.free[0].at[slot])
        return dk, dv

    carry = tuple(
        constant(p, 0.0, (ROWS, n), WGMMA) if there else None
        for n, there in zip((p.head, p.value), wanted, strict=True)
    )
    one = lambda member, carry: loop(parts, ends, partial(visit, member), carry)
    dk, dv = lax.fori_loop(0, p.group, one, carry)
    return None if dk is None else dk * p.scale, dv
