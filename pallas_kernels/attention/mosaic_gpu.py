"""Attention on Hopper GPUs through Mosaic: warpgroups, tensor memory accelerator and wgmma.

Two warpgroups compute 64 queries each of one head, a third copies the tiles of keys and values
that both visit. While one has the tensor cores the other makes its softmax (Shah et al. 2024, arXiv
2407.08608); running maxima and sums make it exact (Dao 2023, arXiv 2307.08691).
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
from jscale.pallas_kernels.attention.mosaic_gpu_backward import keys_pass, queries_pass
from jscale.pallas_kernels.attention.mosaic_gpu_tiles import (
    COMPUTING,
    COPIER,
    DOWN,
    FEW,
    HOPPER,
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
    log2,
    product,
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

BLOCK = COMPUTING * ROWS  # queries of a block


def mosaic_gpu(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`; sums in float32, products in the arrays' dtype, memory as T + S."""
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    assert scores.bias is None
    p = Problem(B, T, S, N, K, H, V, mask, float(scores.of(H)), scores.cap, interpret.gpu())
    slopes = None if scores.slopes is None else scores.slopes.astype(jnp.float32)
    out, lse = _attend(p, q, k, v, Given(places, slopes))
    return out, lse.swapaxes(1, 2)


def tiles(p: Problem) -> Tiles:
    """Queries of a block and keys of a tile: what shared memory holds twice of the keys."""
    return Tiles(BLOCK, 128 if max(p.head, p.value) <= 128 else 64)


def forward(
    p: Problem, q: Array, k: Array, v: Array, given: Given
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """The result and the log-sum-exp of each query's scores."""
    size = tiles(p)
    found = visits(p, size, given.places)
    arrays = gather(p, found, (size.queries, size.keys), (q, k, v), given)
    rows = pl.cdiv(p.queries, BLOCK)
    out, lse = call(
        partial(_kernel, p, size, phases(found)),
        dict(head=p.heads, tile=rows, row=p.rows),
        arrays,
        [
            jax.ShapeDtypeStruct((p.rows, length(p, p.queries, BLOCK), p.heads, p.value), q.dtype),
            jax.ShapeDtypeStruct((p.rows, p.heads, rows * BLOCK), jnp.float32),
        ],
        [
            shared(COMPUTING, ROWS, p.head, dtype=q.dtype),
            None if p.value == p.head else shared(COMPUTING, ROWS, p.value, dtype=q.dtype),
            shared(COMPUTING, ROWS, dtype=jnp.float32),
            shared(2, size.keys, p.head, dtype=k.dtype),
            shared(2, size.keys, p.value, dtype=v.dtype),
            plgpu.Barrier(num_barriers=COMPUTING),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=2),
            plgpu.Barrier(num_arrivals=COMPUTING),
        ],
        "attention_forward",
    )
    return out[:, : p.queries], lse[..., : p.queries]


def _kernel(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, outs: Any, memory: Any
) -> None:
    q, out, sums, k, v, ready, k_full, v_full, free, turn = memory
    out = q if out is None else out
    rows = pl.cdiv(p.queries, BLOCK)
    i = rows - 1 - lax.axis_index("tile")  # those that see most keys first, as the mask is causal
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
        start = i * BLOCK + group * ROWS
        place = row, pl.ds(start, ROWS), head
        plgpu.copy_gmem_to_smem(arrays.q.at[place], q.at[group], ready.at[group])
        plgpu.barrier_wait(ready.at[group])
        result, lse = _queries(p, size, parts, arrays, (q.at[group], ring, turn), (start, ends))
        out.at[group][...] = result.astype(out.dtype)
        sums.at[group][...] = lse
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out.at[group], outs[0].at[place])
        plgpu.copy_smem_to_gmem(sums.at[group], outs[1].at[row, head, pl.ds(start, ROWS)])
        plgpu.wait_smem_to_gmem(0)


def _queries(
    p: Problem, size: Tiles, parts: Any, arrays: Arrays, memory: Any, where: Any
) -> tuple[Any, Any]:
    """The result of one warpgroup's queries, and their log-sum-exp."""
    (q, ring, turn), (start, ends) = memory, where
    shape, group = (ROWS, size.keys), lax.axis_index("group")
    slope = None if arrays.slopes is None else arrays.slopes[lax.axis_index("head")]
    across = lambda x, width: lax.broadcast_in_dim(x, (ROWS, width), [0])

    def change() -> None:  # between the tensor cores and the softmax
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    def visit(masked: bool, j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        peak, total, sums = carry
        slot = lax.rem(j - ends[0], jnp.int32(2))
        at = start, j * size.keys
        plgpu.barrier_wait(ring.full[0].at[slot])
        products = product(p, q, ring.buffers[0].at[slot], turned=True, then=change)
        logits, _ = scores_in(p, arrays, products, slope, at, False)
        if masked:
            logits = jnp.where(seen_in(p, arrays, shape, at, False), logits, LEAST)
        new = jnp.maximum(peak, jnp.max(logits, axis=1))
        # Where nothing was seen yet, 2^(−1e30 − 0) is 0, but 2^(−1e30 + 1e30) is not.
        ground = jnp.where(new == LEAST, 0.0, new) if masked else new
        weights = jnp.exp2(logits - across(ground, size.keys))
        shrink = jnp.exp2(peak - ground)
        total = total * shrink + jnp.sum(weights, axis=1)
        sums = sums * across(shrink, p.value)
        weights = weights.astype(ring.buffers[1].dtype)
        plgpu.barrier_wait(ring.full[1].at[slot])
        change()
        sums = add(p, sums, weights, ring.buffers[1].at[slot])
        plgpu.barrier_arrive(ring.free[0].at[slot])
        return new, total, sums

    carry = (
        constant(p, LEAST, (ROWS,), DOWN),
        constant(p, 0.0, (ROWS,), DOWN),
        constant(p, 0.0, (ROWS, p.value), WGMMA),
    )
    pl.when(group == 1)(change)
    peak, total, sums = loop(parts, ends, visit, carry)
    pl.when(group == 0)(change)
    some = jnp.where(total == 0, 1.0, total)
    lse = jnp.where(total == 0, LEAST, (peak + log2(some)) / LOG2E)
    return sums / across(some, p.value), lse


def refuses(call: Any) -> str | None:
    """Why these kernels cannot compute a call."""
    if (why := limits(call, BLOCK, ROWS)) is not None:
        return why
    if not interpret.active() and not any(name in device().kind for name in HOPPER):
        return f"is made for Hopper only, not for {device().kind}"
    return None


_attend = by_passes(forward, queries_pass, keys_pass)
