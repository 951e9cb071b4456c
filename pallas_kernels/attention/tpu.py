"""Attention on TPU, through Pallas and Mosaic: forward here, backward in `tpu_backward`.

The scores of one tile of queries against one tile of keys live in vector memory only; a running
maximum and sum make the softmax exact (Milakov & Gimelshein 2018, arXiv 1805.02867; Dao et al.
2022, arXiv 2205.14135). Heads that share keys find them by the index of their group.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.
# i and j count tiles of queries and of keys.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention import tpu_backward
from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.sinks import beginning
from jscale.pallas_kernels.attention.tpu_tiles import (
    LANES,
    Problem,
    Tables,
    Tiles,
    inside,
    operands,
    reach,
    scores_in,
    seen_in,
    tables,
    visit,
)
from jscale.pallas_kernels.attention.tuned import TPU, Extent
from jscale.pallas_kernels.block import product
from jscale.pallas_kernels.device import device


def flash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
    size: Tiles | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`, by kernels for TPU; sums in float32, products in `q`'s dtype."""
    (T, _, H), (S, V) = q.shape[1:], (k.shape[1], v.shape[-1])
    size = size or TPU.of(device().kind, Extent(T, S, H, V, str(q.dtype)))
    problem = Problem(mask, scores.of(H), scores.cap, size, T, S)
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    out, lse = _attend(problem, *heads_first, scores.bias, scores.sinks, scores.slopes, places)
    return out.swapaxes(1, 2), lse.swapaxes(1, 2)


def refuses(call: Any) -> str | None:
    """Why the kernels cannot compute a call: numbers that Mosaic does not multiply; else None."""
    if call.dtype not in ("float32", "bfloat16"):
        return f"computes in float32 and bfloat16, not in {call.dtype}"
    return None


def forward(
    problem: Problem,
    q: Array,
    k: Array,
    v: Array,
    bias: Any,
    sinks: Any,
    slopes: Any,
    places: Places,
) -> tuple[Float[Array, "B N T V"], Float[Array, "B N T"]]:
    """The result, and the log-sum-exp of each query's scores (−1e30 where it sees nothing)."""
    (B, N, T, _), V, (t, _) = q.shape, v.shape[-1], problem.size
    known, steps = tables(problem, places, slopes, of_keys=False)
    known = known._replace(sinks=None if sinks is None else sinks.astype(jnp.float32))

    def where(b: Any, n: Any, i: Any, step: Any, refs: Any) -> tuple[Any, Any, Any, Any]:
        return b, n, i, reach(problem, refs, False, b, i, step)[0]

    read = operands(problem, dict(q=q, k=k, v=v), {}, bias, places, where)
    out, lse = pl.pallas_call(
        partial(_forward_kernel, problem, steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N, problem.counts[0], steps),
            in_specs=[read.specs],
            out_specs=[
                pl.BlockSpec((1, 1, t, V), lambda b, n, i, step, refs: (b, n, i, 0)),
                pl.BlockSpec((1, 1, 1, t), lambda b, n, i, step, refs: (b, n, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((t, V), jnp.float32),
                pltpu.VMEM((t, LANES), jnp.float32),
                pltpu.VMEM((t, LANES), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, N, T, V), q.dtype),
            jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32),
        ],
        compiler_params=interpret.tpu_parameters(*["parallel"] * 3, "arbitrary"),
        interpret=interpret.tpu(),
        name="attention_forward",
    )(known, read.arrays)
    return out, lse[:, :, 0]


def _forward_kernel(
    problem: Problem,
    steps: int,
    known: Tables,
    blocks: Any,
    *written: Any,
) -> None:
    out, lse, sums, peaks, totals = written
    b, n, i, step = (pl.program_id(axis) for axis in range(4))
    j, there = reach(problem, known, False, b, i, step)
    some, every = visit(problem, known, b, i, j)
    slope, sink = (None if x is None else x[n] for x in (known.slopes, known.sinks))

    @pl.when(step == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)
        peak, total = beginning(sink, LEAST)
        peaks[...] = jnp.full_like(peaks, peak)
        totals[...] = jnp.full_like(totals, total)

    def add(masked: bool) -> None:
        q, k, v = (blocks[name][0, 0] for name in ("q", "k", "v"))
        scores, _ = scores_in(problem, blocks, slope, q, k, (i, j), False)
        seen = seen_in(problem, blocks, i, j, False) if masked else None
        scores = scores if seen is None else jnp.where(seen, scores, LEAST)
        old = peaks[:, :1]
        new = jnp.maximum(old, scores.max(1, keepdims=True))
        weights, shrink = jnp.exp(scores - new), jnp.exp(old - new)
        if seen is not None:
            weights, v = jnp.where(seen, weights, 0.0), inside(v, j, problem.keys)
        total = totals[:, :1] * shrink + weights.sum(1, keepdims=True)
        peaks[...] = jnp.broadcast_to(new, peaks.shape)
        totals[...] = jnp.broadcast_to(total, totals.shape)
        sums[...] = sums[...] * shrink + product(weights.astype(v.dtype), v, (1, 0))

    pl.when(there & some & every)(partial(add, False))
    pl.when(there & some & jnp.logical_not(every))(partial(add, True))

    @pl.when(step == steps - 1)
    def _() -> None:
        total = totals[...]
        some = jnp.where(total == 0, 1.0, total)
        out[0, 0] = (sums[...] / some[:, :1]).astype(out.dtype)
        found = jnp.where(total == 0, LEAST, peaks[...] + jnp.log(some))
        lse[0, 0] = found.T[:1]


def _forward(problem: Problem, *inputs: Any) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    out, lse = forward(problem, *inputs)
    return (out, lse), (*inputs, out, lse)


_attend = jax.custom_vjp(forward, nondiff_argnums=(0,))
_attend.defvjp(_forward, tpu_backward.backward)
