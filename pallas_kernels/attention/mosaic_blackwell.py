"""Attention on Blackwell GPUs through Mosaic: tensor memory, its products, and the copier.

Each of two warpgroups computes 128 queries of one head. Scores, their weights and the result are
in tensor memory, where the tensor cores read and write them while the warpgroup computes; a third
warpgroup copies tiles of keys and values. The next scores are made during the softmax, and the
result is scaled anew only where a maximum grew by more than 2⁸ (after Zadouri et al. 2026,
arXiv 2603.05451). Running maxima and sums make it exact (Dao 2023, arXiv 2307.08691).
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

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.mosaic_blackwell_backward import keys_pass, queries_pass
from jscale.pallas_kernels.attention.mosaic_blackwell_tiles import (
    DOWN,
    LAYOUT,
    PART,
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
from jscale.pallas_kernels.attention.mosaic_gpu_tiles import (
    Ring,
    bounds,
    call,
    constant,
    gather,
    length,
    log2,
    scores_in,
    seen_in,
    shared,
)
from jscale.pallas_kernels.attention.mosaic_passes import by_passes, limits
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.triton_tiles import (
    LOG2E,
    Arrays,
    Given,
    Problem,
    Tiles,
    loop,
    phases,
    visits,
)
from jscale.pallas_kernels.device import device

BLACKWELL = ("B200", "GB200", "B100")
GROWTH = 8.0  # by how many powers of 2 weights may exceed 1 before the result is scaled anew


def mosaic_blackwell(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`; sums in float32, products in the arrays' dtype, memory as T + S."""
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    assert scores.bias is None and scores.sinks is None
    p = Problem(B, T, S, N, K, H, V, mask, float(scores.of(H)), scores.cap, interpret.gpu())
    slopes = None if scores.slopes is None else scores.slopes.astype(jnp.float32)
    out, lse = _attend(p, q, k, v, Given(places, slopes))
    return out, lse.swapaxes(1, 2)


def forward(
    p: Problem, q: Array, k: Array, v: Array, given: Given
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """The result and the log-sum-exp of each query's scores."""
    G = 2 if p.value <= 128 and p.head <= 192 else 1  # as both memories allow
    size = Tiles(G * ROWS, STEP)
    room = stages(G * ROWS * (p.head + PART + 8), p.head + p.value)  # 8: sums, and reductions
    found = visits(p, size, given.places)
    arrays = gather(p, found, (size.queries, size.keys), (q, k, v), given)
    rows = pl.cdiv(p.queries, size.queries)
    whole = p.rows, length(p, p.queries, size.queries), p.heads, p.value
    out, lse = call(
        partial(_kernel, p, size, phases(found)),
        dict(head=p.heads, tile=rows, row=p.rows),
        arrays,
        [
            jax.ShapeDtypeStruct(whole, q.dtype),
            jax.ShapeDtypeStruct((p.rows, p.heads, rows * size.queries), jnp.float32),
        ],
        [
            shared(G, ROWS, p.head, dtype=q.dtype),
            staging(G, q.dtype),
            shared(G, ROWS, dtype=jnp.float32),
            shared(room, STEP, p.head, dtype=k.dtype),
            shared(room, STEP, p.value, dtype=v.dtype),
            [
                tensor(ROWS, G * STEP),
                tensor(ROWS, G * STEP, dtype=q.dtype),
                tensor(ROWS, G * p.value),
            ],
            plgpu.Barrier(num_barriers=G),
            [plgpu.Barrier(num_barriers=room) for _ in range(2)],
            [plgpu.Barrier(num_arrivals=G, num_barriers=room) for _ in range(2)],
            [Ordered(num_barriers=G) for _ in range(2)],
        ],
        "attention_forward",
        G,
    )
    return out[:, : p.queries], lse[..., : p.queries]


def _kernel(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, outs: Any, memory: Any
) -> None:
    q, out, sums, k, v, tensors, ready, full, free, done = memory
    rows, G = pl.cdiv(p.queries, size.queries), q.shape[0]
    i = rows - 1 - lax.axis_index("tile")  # those that see most keys first, as the mask is causal
    row, head, group = (lax.axis_index(name) for name in ("row", "head", "group"))
    ends = bounds(arrays, p, rows, i)
    ring = Ring((k, v), full, free)

    def compute() -> None:
        start = i * size.queries + group * ROWS
        queries = pl.ds(start, ROWS)
        plgpu.copy_gmem_to_smem(arrays.q.at[row, queries, head], q.at[group], ready.at[group])
        plgpu.barrier_wait(ready.at[group])
        mine = [part_of(ref, group, ref.shape[1] // G) for ref in tensors]
        barriers = [barrier.at[group] for barrier in done]
        near = q.at[group], ring, mine, barriers
        scale, lse = _queries(p, parts, arrays, near, (start, ends))
        sums.at[group][...] = lse
        target = lambda columns: outs[0].at[row, queries, head, columns]
        write(mine[2], scale, out.at[group], target)
        plgpu.copy_smem_to_gmem(sums.at[group], outs[1].at[row, head, queries])
        plgpu.wait_smem_to_gmem(0)

    sharing(G, group, lambda: ring.fill_keys(p, arrays, ends), compute)


def _queries(p: Problem, parts: Any, arrays: Arrays, memory: Any, where: Any) -> tuple[Any, Any]:
    """What one warpgroup's result is to be multiplied by, and the log-sum-exp of its queries."""
    (q, ring, (scores, weights, result), (scored, summed)), (start, ends) = memory, where
    (k, v), stages = ring.buffers, jnp.int32(ring.buffers[0].shape[0])
    slope = None if arrays.slopes is None else arrays.slopes[lax.axis_index("head")]
    across = lambda x, width: lax.broadcast_in_dim(x, (ROWS, width), [0])
    slot_of = lambda n: lax.rem(n, stages)

    def score(n: Any) -> None:
        """Let the tensor cores make the scores of the n-th tile."""
        slot = slot_of(n)
        plgpu.barrier_wait(ring.full[0].at[slot])
        turned = k.at[slot].transpose((1, 0))
        plgpu.tcgen05_mma(scores, q, turned, scored, accumulate=False)

    def finish(n: Any) -> None:
        """Wait until the n-th tile is part of the result."""
        plgpu.barrier_wait(summed)
        plgpu.barrier_arrive(ring.free[1].at[slot_of(n)])

    def visit(masked: bool, j: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        peak, total = carry
        n, at = j - ends[0], (start, j * STEP)
        plgpu.barrier_wait(scored)
        products = plgpu.async_load_tmem(scores, layout=LAYOUT)
        plgpu.wait_load_tmem()
        plgpu.barrier_arrive(ring.free[0].at[slot_of(n)])
        pl.when(j + 1 < ends[3])(lambda: score(n + 1))
        logits, _ = scores_in(p, arrays, products, slope, at, False, LAYOUT)
        if masked:
            seen = seen_in(p, arrays, (ROWS, STEP), at, False, LAYOUT)
            logits = jnp.where(seen, logits, LEAST)
        most = jnp.max(logits, axis=1)
        grew = most > peak + GROWTH
        new = jnp.where(grew, most, peak)
        # Where nothing was seen yet, 2^(−1e30 − 0) is 0, but 2^(−1e30 + 1e30) is not.
        ground = jnp.where(new == LEAST, 0.0, new)
        shares = jnp.exp2(logits - across(ground, STEP))
        shrink = jnp.exp2(peak - ground)
        total = total * shrink + jnp.sum(shares, axis=1)
        pl.when(n > 0)(lambda: finish(n - 1))

        @pl.when((n > 0) & (jnp.max(grew.astype(jnp.int32)) > 0))
        def _() -> None:
            for part in range(0, p.value, PART):
                columns = result.at[:, pl.ds(part, PART)]
                found = plgpu.async_load_tmem(columns, layout=LAYOUT)
                plgpu.wait_load_tmem()
                plgpu.async_store_tmem(columns, found * across(shrink, PART))

        plgpu.async_store_tmem(weights, shares.astype(v.dtype))
        plgpu.commit_tmem()
        plgpu.barrier_wait(ring.full[1].at[slot_of(n)])
        plgpu.tcgen05_mma(result, weights, v.at[slot_of(n)], summed, accumulate=n > 0)
        return new, total

    pl.when(ends[3] > ends[0])(lambda: score(jnp.int32(0)))
    carry = constant(p, LEAST, (ROWS,), DOWN), constant(p, 0.0, (ROWS,), DOWN)
    peak, total = loop(parts, ends, visit, carry)
    pl.when(ends[3] > ends[0])(lambda: finish(ends[3] - ends[0] - 1))
    some = jnp.where(total == 0, 1.0, total)
    lse = jnp.where(total == 0, LEAST, (peak + log2(some)) / LOG2E)
    return jnp.where(total == 0, 0.0, 1 / some), lse


def refuses(call: Any) -> str | None:
    """Why these kernels cannot compute a call."""
    if (why := limits(call, ROWS, ROWS)) is not None:
        return why
    if interpret.active() and not hasattr(plgpu, "InterpretGPUParams"):
        return "is interpreted from JAX 0.12 on only, which knows tensor memory"
    if not interpret.active() and not any(name in device().kind for name in BLACKWELL):
        return f"is made for Blackwell only, not for {device().kind}"
    return None


_attend = by_passes(forward, queries_pass, keys_pass)
