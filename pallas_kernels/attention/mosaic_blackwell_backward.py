"""Gradients of the Blackwell kernels of attention: scores are made again, nothing is added twice.

One block sums the gradient of the queries, another that of 128 keys and values over all query heads
that share them (Dao 2023, arXiv 2307.08691). All sums are in tensor memory; where there is not room
for those of keys and of values, each has a kernel of its own.
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

from jscale.pallas_kernels.attention.mosaic_blackwell_tiles import (
    ACROSS,
    COLUMNS,
    DOWN,
    LAYOUT,
    ROWS,
    STEP,
    Ordered,
    part_of,
    sharing,
    stages,
    staging,
    tensor,
    write,
)
from jscale.pallas_kernels.attention.mosaic_gpu_backward import slopes_in
from jscale.pallas_kernels.attention.mosaic_gpu_tiles import (
    Ring,
    bounds,
    call,
    constant,
    gather,
    length,
    read,
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


def queries_pass(
    p: Problem, q: Array, k: Array, v: Array, given: Given, *more: Array
) -> Float[Array, "B T N H"]:
    """The gradient of the queries; `more` are those of the result, log₂ Σ 2^scores and delta."""
    width = p.head + p.value
    G = 2 if max(p.head, p.value) <= 128 else 1  # as both memories allow
    size = Tiles(G * ROWS, STEP)
    room = stages(G * ROWS * (width + STEP), width)
    found = visits(p, size, given.places)
    arrays = gather(p, found, (size.queries, size.keys), (q, k, v), given, *more)
    out = p.rows, length(p, p.queries, size.queries), p.heads, p.head
    (dq,) = call(
        partial(_queries, p, size, phases(found)),
        dict(head=p.heads, tile=pl.cdiv(p.queries, size.queries), row=p.rows),
        arrays,
        [jax.ShapeDtypeStruct(out, q.dtype)],
        [
            shared(G, ROWS, p.head, dtype=q.dtype),
            shared(G, ROWS, p.value, dtype=q.dtype),
            shared(G, ROWS, STEP, dtype=q.dtype),
            shared(room, STEP, p.head, dtype=k.dtype),
            shared(room, STEP, p.value, dtype=v.dtype),
            [tensor(ROWS, G * n) for n in (STEP, STEP, p.head)],
            plgpu.Barrier(num_arrivals=2, num_barriers=G),
            [plgpu.Barrier(num_barriers=room) for _ in range(2)],
            plgpu.Barrier(num_arrivals=G, num_barriers=room),
            [Ordered(num_barriers=G) for _ in range(2)],
        ],
        "attention_queries_backward",
        G,
    )
    return dq[:, : p.queries]


def _queries(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, outs: Any, memory: Any
) -> None:
    q, dout, slopes, k, v, tensors, ready, full, free, done = memory
    rows = pl.cdiv(p.queries, size.queries)
    i = rows - 1 - lax.axis_index("tile")
    row, head, group = (lax.axis_index(name) for name in ("row", "head", "group"))
    ends = bounds(arrays, p, rows, i)
    ring = Ring((k, v), full, (free,))

    def compute() -> None:
        start = i * size.queries + group * ROWS
        queries = pl.ds(start, ROWS)
        for source, buffer in ((arrays.q, q), (arrays.dout, dout)):
            plgpu.copy_gmem_to_smem(
                source.at[row, queries, head], buffer.at[group], ready.at[group]
            )
        numbers = tuple(
            read(p, ref.at[row, head, queries], DOWN, near=False)
            for ref in (arrays.lse, arrays.delta)
        )
        plgpu.barrier_wait(ready.at[group])
        near = tuple(buffer.at[group] for buffer in (q, dout, slopes))
        mine = [part_of(ref, group, ref.shape[1] // q.shape[0]) for ref in tensors]
        barriers = [barrier.at[group] for barrier in done]
        tile = ring, near, mine, barriers
        step = partial(_of_keys, p, arrays, tile, (numbers, start, ends[0]))
        loop(parts, ends, step, None)
        factor = jnp.where(ends[3] > ends[0], p.scale, 0.0)
        target = lambda columns: outs[0].at[row, queries, head, columns]
        write(mine[2], constant(p, 1.0, (ROWS,), DOWN) * factor, near[2], target)
        plgpu.wait_smem_to_gmem(0)

    sharing(q.shape[0], group, lambda: ring.fill_keys(p, arrays, ends), compute)


def _of_keys(
    p: Problem, arrays: Arrays, memory: Any, where: Any, masked: bool, j: Any, _: None
) -> None:
    """Add what one tile of keys gives to the gradient of a warpgroup's queries."""
    ring, (q, dout, slopes), (scores, inner, total), (scored, summed) = memory
    numbers, start, first = where
    n = j - first
    slot = lax.rem(n, jnp.int32(ring.buffers[0].shape[0]))
    keys, values = (buffer.at[slot] for buffer in ring.buffers)
    plgpu.barrier_wait(ring.full[0].at[slot])
    plgpu.tcgen05_mma(scores, q, keys.transpose((1, 0)), accumulate=False)
    plgpu.barrier_wait(ring.full[1].at[slot])
    plgpu.tcgen05_mma(inner, dout, values.transpose((1, 0)), accumulate=False)
    plgpu.tcgen05_commit_arrive(scored)
    plgpu.barrier_wait(scored)
    products = tuple(plgpu.async_load_tmem(ref, layout=LAYOUT) for ref in (scores, inner))
    plgpu.wait_load_tmem()
    at = lax.axis_index("head"), start, j * STEP
    _, found = slopes_in(p, arrays, products, numbers, at, (masked, False, LAYOUT))
    slopes[...] = found.astype(slopes.dtype)
    plgpu.commit_smem()
    plgpu.tcgen05_mma(total, slopes, keys, summed, accumulate=n > 0)
    plgpu.barrier_wait(summed)
    plgpu.barrier_arrive(ring.free[0].at[slot])


def keys_pass(
    p: Problem, q: Array, k: Array, v: Array, given: Given, *more: Array
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K V"]]:
    """The gradients of the keys and of the values."""
    size = Tiles(STEP, ROWS)
    found = visits(p, size, given.places, by_keys=True)
    arrays = gather(p, found, (size.queries, size.keys), (q, k, v), given, *more)
    run = partial(_gradients, p, size, phases(found), arrays)
    if 3 * STEP + p.head + p.value <= COLUMNS:
        dk, dv = run((p.head, p.value))
    else:
        (dk,), (dv,) = run((p.head, None)), run((None, p.value))
    return dk[:, : p.keys], dv[:, : p.keys]


def _gradients(
    p: Problem, size: Tiles, parts: Any, arrays: Arrays, wanted: tuple[int | None, int | None]
) -> list[Array]:
    """The gradients of keys and of values whose widths are given."""
    whole = p.rows, length(p, p.keys, size.keys), p.kv_heads
    dtype, (dk, dv) = arrays.k.dtype, wanted
    value = p.value if dk else 0  # without it values are not needed
    room = stages(ROWS * (p.head + value + STEP), p.head + p.value)
    sums = lambda width: None if width is None else tensor(ROWS, width)
    factor = lambda width: None if width is None else tensor(ROWS, STEP, dtype=dtype)
    return call(
        partial(_keys, p, size, parts),
        dict(head=p.kv_heads, tile=pl.cdiv(p.keys, size.keys), row=p.rows),
        arrays,
        [jax.ShapeDtypeStruct((*whole, n), dtype) for n in wanted if n],
        [
            shared(ROWS, p.head, dtype=dtype),
            shared(ROWS, value, dtype=dtype) if value else None,
            staging(1, dtype),
            [
                shared(room, STEP, p.head, dtype=dtype),
                shared(room, STEP, p.value, dtype=dtype),
                shared(room, STEP, dtype=jnp.float32),
                shared(room, STEP, dtype=jnp.float32),
            ],
            [tensor(ROWS, STEP), sums(STEP if dk else None)],
            [factor(dk), factor(dv)],
            [sums(dk), sums(dv)],
            plgpu.Barrier(num_arrivals=2 if value else 1),
            [plgpu.Barrier(num_barriers=room) for _ in range(4)],
            plgpu.Barrier(num_barriers=room),
            [Ordered(), Ordered()],
        ],
        "attention_keys_backward",
        1,
    )


def _keys(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, outs: Any, memory: Any
) -> None:
    k, v, out, buffers, products, factors, sums, ready, full, free, done = memory
    j, tiles = lax.axis_index("tile"), pl.cdiv(p.keys, size.keys)
    row, head, group = (lax.axis_index(name) for name in ("row", "head", "group"))
    ends = bounds(arrays, p, tiles, j)
    ring, count = Ring(buffers, full, (free,)), ends[3] - ends[0]
    place = row, pl.ds(j * size.keys, ROWS), head

    def copy() -> None:
        for source, buffer in ((arrays.k, k), (arrays.v, v)):
            if buffer is not None:
                plgpu.copy_gmem_to_smem(source.at[place], buffer, ready)

        def copies(n: Any) -> Any:
            member = lax.div(n, count)
            queries = pl.ds((ends[0] + n - member * count) * STEP, STEP)
            mine = head * p.group + member
            matrices = arrays.q.at[row, queries, mine], arrays.dout.at[row, queries, mine]
            return *matrices, arrays.lse.at[row, mine, queries], arrays.delta.at[row, mine, queries]

        ring.fill(count * p.group, copies)

    def compute() -> None:
        plgpu.barrier_wait(ready)
        tensors = products, factors, sums
        _sums(p, parts, arrays, (ring, (k, v), tensors, done), (j * size.keys, ends))
        factor = constant(p, 1.0, (ROWS,), DOWN) * jnp.where(count > 0, 1.0, 0.0)
        scales = [s for s, total in zip((p.scale, 1.0), sums, strict=True) if total is not None]
        there = [total for total in sums if total is not None]
        for total, scale, target in zip(there, scales, outs, strict=True):
            write(total, factor * scale, out.at[0], lambda part, to=target: to.at[*place, part])
        plgpu.wait_smem_to_gmem(0)

    sharing(1, group, copy, compute)


def _sums(p: Problem, parts: Any, arrays: Arrays, memory: Any, where: Any) -> None:
    """Sum the gradients of 128 keys and of their values, those for which there are sums."""
    (ring, (k, v), (products, factors, (dk, dv)), (scored, summed)), (start, ends) = memory, where
    room = ring.buffers[0].shape[0]
    ahead = room > 2  # next scores are made while these are used: three tiles are held then
    first, count = lax.axis_index("head") * p.group, ends[3] - ends[0]
    slot_of = lambda n: lax.rem(n, jnp.int32(room))

    def score(n: Any) -> None:
        slot = slot_of(n)
        q, dout = (buffer.at[slot].transpose((1, 0)) for buffer in ring.buffers[:2])
        plgpu.barrier_wait(ring.full[0].at[slot])
        plgpu.tcgen05_mma(products[0], k, q, accumulate=False)
        plgpu.barrier_wait(ring.full[1].at[slot])
        if dk is not None:
            plgpu.tcgen05_mma(products[1], v, dout, accumulate=False)
        plgpu.tcgen05_commit_arrive(scored)

    def finish(n: Any) -> None:
        plgpu.barrier_wait(summed)
        plgpu.barrier_arrive(ring.free[0].at[slot_of(n)])

    def visit(member: Any, masked: bool, i: Any, _: None) -> None:
        n = member * count + i - ends[0]
        q, dout, lse, delta = (buffer.at[slot_of(n)] for buffer in ring.buffers)
        if not ahead:
            score(n)
        plgpu.barrier_wait(scored)
        # Scores turned around, keys by queries: weights are then factors without being moved.
        found = [x if x is None else plgpu.async_load_tmem(x, layout=LAYOUT) for x in products]
        plgpu.wait_load_tmem()
        if ahead:
            pl.when(n + 1 < count * p.group)(lambda: score(n + 1))
        for barrier in ring.full[2:]:
            plgpu.barrier_wait(barrier.at[slot_of(n)])
        numbers = read(p, lse, ACROSS), None if dk is None else read(p, delta, ACROSS)
        plgpu.commit_smem()  # read, before the copier writes there anew
        at = first + member, i * STEP, start
        weights, slopes = slopes_in(p, arrays, found, numbers, at, (masked, True, LAYOUT))
        if ahead:
            pl.when(n > 0)(lambda: finish(n - 1))
        for factor, x in zip(factors, (slopes, weights), strict=True):
            if factor is not None:
                plgpu.async_store_tmem(factor, x.astype(dout.dtype))
        plgpu.commit_tmem()
        for total, factor, x in zip((dk, dv), factors, (q, dout), strict=True):
            if total is not None:
                plgpu.tcgen05_mma(total, factor, x, accumulate=n > 0)
        plgpu.tcgen05_commit_arrive(summed)
        if not ahead:
            finish(n)

    if ahead:
        pl.when(count > 0)(lambda: score(jnp.int32(0)))
    one = lambda member, _: loop(parts, ends, partial(visit, member), None)
    lax.fori_loop(0, p.group, one, None)
    if ahead:
        pl.when(count > 0)(lambda: finish(count * p.group - 1))
