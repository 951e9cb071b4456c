"""Attention as GPU kernels, lowered through Triton: tiles of scores live in registers only.

One program computes a tile of queries of one head: it visits the tiles of keys between the first
and the last that the mask shows, with a running maximum and sum (Dao 2023, arXiv 2307.08691).
Inside, where all is seen, no mask is computed.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.sinks import beginning, slope_of_sinks
from jscale.pallas_kernels.attention.triton_backward import bias_pass, keys_pass, queries_pass
from jscale.pallas_kernels.attention.triton_tiles import (
    LOG2E,
    UPRIGHT,
    Arrays,
    Given,
    Problem,
    Tiles,
    bias_of,
    bounds_of,
    gather,
    loop,
    matrix,
    note,
    phases,
    places_of,
    scores_of,
    seen_of,
    specs,
    split,
    visits,
    wide,
    write,
)
from jscale.pallas_kernels.attention.tuned import TRITON, Extent, Sizes
from jscale.pallas_kernels.block import product, up
from jscale.pallas_kernels.device import device

MOST = 65_535  # programs along the second axis of a grid


def triton(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
    size: Sizes | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`; sums in float32, products in the arrays' dtype, memory as T + S."""
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    scale = float(scores.of(H))
    problem = Problem(B, T, S, N, K, H, V, mask, scale, scores.cap, interpret.gpu())
    size = size or TRITON.of(device().kind, Extent(T, S, H, V, str(q.dtype)))
    size = Sizes(*(tiles.of(T, S) for tiles in size))
    slopes = None if scores.slopes is None else scores.slopes.astype(jnp.float32)
    given = Given(places, slopes)
    out, lse = _attend(problem, size, q, k, v, scores.bias, scores.sinks, given)
    return out, lse.swapaxes(1, 2)


def refuses(call: Any) -> str | None:
    """Why these kernels cannot compute a call."""
    if call.dtype not in ("bfloat16", "float16", "float32"):
        return f"computes bfloat16, float16 and float32 only, not {call.dtype}"
    if call.rows * call.heads > MOST:
        return f"takes up to {MOST} heads of all rows together"
    if not (call.rows and call.queries and call.keys):
        return "needs a query and a key"
    if max(call.head, call.value) > 256:
        return "needs heads of up to 256"
    return None


def forward(
    problem: Problem,
    size: Sizes,
    q: Array,
    k: Array,
    v: Array,
    bias: Any,
    sinks: Any,
    given: Given,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """The result and the log-sum-exp of each query's scores."""
    tiles, p = size.forward, problem
    found = visits(p, tiles, given.places)
    arrays = gather(found, q, k, v, bias, given)
    arrays = arrays._replace(sinks=None if sinks is None else sinks.astype(jnp.float32) * LOG2E)
    lengths = up(p.queries, tiles.queries), 1, wide(p.value)
    return pl.pallas_call(
        partial(_kernel, p, tiles, phases(found)),
        grid=(pl.cdiv(p.queries, tiles.queries), p.rows * p.heads),
        in_specs=[specs(p, tiles, arrays, 1)],
        out_specs=[
            pl.BlockSpec(
                (None, *lengths), lambda i, g: (split(g, p.heads)[0], 0, split(g, p.heads)[1], 0)
            ),
            pl.BlockSpec((None, 1, lengths[0]), lambda i, g: (*split(g, p.heads), 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((p.rows, p.queries, p.heads, p.value), q.dtype),
            jax.ShapeDtypeStruct((p.rows, p.heads, p.queries), jnp.float32),
        ],
        interpret=p.interpret,
        name="attention_forward",
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
    )(arrays)


def _kernel(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, out: Any, lse: Any
) -> None:
    """One tile of queries of one head; those that see most keys first, as the mask is causal."""
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    start = i * size.queries
    q = matrix(arrays.q, 0, start, size.queries, p.queries, p.head)
    slope, sink = (None if x is None else x[0] for x in (arrays.slopes, arrays.sinks))

    def visit(masked: bool, j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        peak, total, sums = carry
        begin = j * size.keys
        keys = matrix(arrays.k, 0, begin, size.keys, p.keys, p.head)
        bias = bias_of(p, size, arrays.bias, 0, start, begin)
        places = places_of(p, size, arrays, start, begin, UPRIGHT)
        logits, _ = scores_of(p, product(q, keys, (1, 1)), bias, slope, places)
        if masked:
            logits = jnp.where(seen_of(p, size, arrays, start, begin, UPRIGHT), logits, LEAST)
        new = jnp.maximum(peak, jnp.max(logits, axis=1))
        # Where nothing was seen yet, 2^(−1e30 − 0) is 0, but 2^(−1e30 + 1e30) is not.
        ground = jnp.where(new == LEAST, 0.0, new) if masked else new
        weights = jnp.exp2(logits - ground[:, None])
        shrink = jnp.exp2(peak - ground)
        values = matrix(arrays.v, 0, begin, size.keys, p.keys, p.value)
        sums = sums * shrink[:, None] + product(weights.astype(values.dtype), values)
        return new, total * shrink + jnp.sum(weights, axis=1), sums

    carry = tuple(jnp.full((size.queries,), x, jnp.float32) for x in beginning(sink, LEAST))
    carry = *carry, jnp.zeros((size.queries, wide(p.value)), jnp.float32)
    peak, total, sums = loop(parts, bounds_of(arrays, i), visit, carry)
    some = jnp.where(total == 0, 1.0, total)
    write(out, start, sums / some[:, None], p.queries, p.value)
    note(lse, start, jnp.where(total == 0, LEAST, (peak + jnp.log2(some)) / LOG2E), p.queries)


def _save(
    problem: Problem, size: Sizes, *inputs: Any
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    out, lse = forward(problem, size, *inputs)
    return (out, lse), (*inputs, out, lse)


def _backward(
    problem: Problem, size: Sizes, saved: tuple[Any, ...], slopes: tuple[Array, Array]
) -> tuple[Array, Array, Array, Any, Any, None]:
    q, k, v, bias, sinks, given, out, lse = saved
    dout, more = slopes
    delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).swapaxes(1, 2) - more
    extra = given, dout, lse * LOG2E, delta
    summed = sinks is not None
    dq, *sums = queries_pass(problem, size.queries, q, k, v, bias, *extra, summed=summed)
    dk, dv = keys_pass(problem, size.keys, q, k, v, bias, *extra)
    dbias = None if bias is None else bias_pass(problem, size.forward, q, k, v, bias, *extra)
    dsinks = None if sinks is None else slope_of_sinks(sinks, lse, sums[0], delta, more)
    return dq, dk, dv, dbias, dsinks, None


_attend = jax.custom_vjp(forward, nondiff_argnums=(0, 1))
_attend.defvjp(_save, _backward)
