"""Linear cross-entropy as GPU kernels, lowered through Triton.

A program computes one tile of logits as a product of matrices does, and uses it: for what the tile
adds to log Σ exp, one number for each of its tokens, or for the logits' gradient. Programs that
read the same tiles run side by side and find them in the cache.
"""

# M tokens, D model size, V vocabulary (of this device, where it is split), J tiles of it.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.block import product, up
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.gpu_blocks import both, ends, load, side_by_side, store
from jscale.pallas_kernels.grouped_matmul.tiles import Warps
from jscale.pallas_kernels.linear_cross_entropy.fused import Kernels, fused
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan, capped, slope
from jscale.pallas_kernels.linear_cross_entropy.tiles import TRITON, Extent, Programs


def refuses(call: Any) -> str | None:
    """Why these kernels cannot compute a call: numbers that Triton does not multiply; else None."""
    for dtype in (call.dtype, call.weights):
        if dtype not in ("bfloat16", "float16", "float32"):
            return f"computes bfloat16, float16 and float32 only, not {dtype}"
    return None


def kernel(
    plan: Plan,
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    targets: Any,
    weights: Any = None,
    size: Programs | None = None,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Log-probabilities and normalizers by kernels for GPUs; products in the dtype of `hidden`."""
    (M, D), V = hidden.shape, kernel.shape[1]
    extent = Extent(M, D, V, str(hidden.dtype), str(kernel.dtype))
    size = size or TRITON.of(device().kind, extent)
    return fused(Kernels(measure, slopes, size), plan, hidden, kernel, targets)


def measure(size: Programs, plan: Plan, hidden: Array, kernel: Array, at: Array) -> tuple[Any, ...]:
    """As `Kernels` says: each tile's, joined."""
    M, (D, V) = hidden.shape[0], kernel.shape
    J = -(-V // size.measure.outer)
    count = 3 if plan.smoothing else 2
    each = pl.BlockSpec((J, up(M, size.measure.rows)), lambda p: (0, 0))
    parts = _call(
        partial(_measure_kernel, plan, size.measure, (M, D, V)),
        *(size.measure, hidden, kernel, [at]),
        [each] * count,
        [jax.ShapeDtypeStruct((J, M), jnp.float32)] * count,
    )
    sums = [x.sum(0) for x in parts[1:]]
    return jax.nn.logsumexp(parts[0], 0), *sums, *([] if plan.smoothing else [None])


def slopes(
    size: Programs, plan: Plan, hidden: Array, kernel: Array, at: Array, normalizer: Array, by: Any
) -> Float[Array, "M V"]:
    """As `Kernels` says, in the dtype of `hidden`."""
    M, (D, V) = hidden.shape[0], kernel.shape
    t, _, v, *_ = size.slopes
    return _call(
        partial(_slopes_kernel, plan, size.slopes, (M, D, V), plan.spread(V)),
        *(size.slopes, hidden, kernel, [at, normalizer, *by]),
        pl.BlockSpec((up(M, t), up(V, v)), lambda p: (0, 0)),
        jax.ShapeDtypeStruct((M, V), hidden.dtype),
    )


def _call(
    body: Any,
    size: Warps,
    hidden: Array,
    kernel: Array,
    rows: list[Array],
    out_specs: Any,
    out_shape: Any,
) -> Any:
    """A program for each tile of logits; arrays are addresses, of which each loads its tiles."""
    (M, D), V, (t, d, v, warps, stages) = hidden.shape, kernel.shape[1], size
    whole = lambda *shape: pl.BlockSpec(shape, lambda p: (0,) * len(shape))
    return pl.pallas_call(
        body,
        grid=(-(-M // t) * -(-V // v),),
        in_specs=[
            whole(up(M, t), up(D, d)),
            whole(up(D, d), up(V, v)),
            *[whole(up(M, t)) for _ in rows],
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret.gpu(),
        name="linear_cross_entropy" + body.func.__name__.removesuffix("_kernel"),
    )(hidden, kernel, *rows)


def _tile(size: Warps, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """This program's tile of tokens and of the vocabulary."""
    (M, _, V), (t, _, v, *_) = shape, size
    return side_by_side(pl.program_id(0), -(-M // t), -(-V // v))


def _logits(plan: Plan, size: Warps, shape: tuple[int, int, int], hidden: Any, kernel: Any) -> Any:
    """A tile of logits; what is beyond an end is made of zeros."""
    (M, D, V), (t, d, v, *_) = shape, size
    i, j = _tile(size, shape)
    rows, columns = ends(i * t, t, M), ends(j * v, v, V)

    def add(k: Any, sums: Any) -> Any:
        deep = ends(k * d, d, D)
        x = load(hidden.at[pl.ds(i * t, t), pl.ds(k * d, d)], (rows, deep))
        w = load(kernel.at[pl.ds(k * d, d), pl.ds(j * v, v)], (deep, columns))
        return sums + product(x, w.astype(x.dtype))

    return capped(plan, lax.fori_loop(0, -(-D // d), add, jnp.zeros((t, v), jnp.float32)))


def _words(size: Warps, j: Any) -> Any:
    """Which of the vocabulary a tile's columns are."""
    return j * size.outer + lax.broadcasted_iota(jnp.int32, (size.rows, size.outer), 1)


def _of_tokens(size: Warps, M: int, i: Any, ref: Any) -> Any:
    """Numbers of a tile's tokens, as a column."""
    mask = ends(i * size.rows, size.rows, M)
    part = ref.at[pl.ds(i * size.rows, size.rows)]
    row = plgpu.load(part) if mask is None else plgpu.load(part, mask=mask, other=0)
    return row[:, None]


def _measure_kernel(
    plan: Plan,
    size: Warps,
    shape: tuple[int, int, int],
    hidden: Any,
    kernel: Any,
    at: Any,
    *outs: Any,
) -> None:
    (M, _, V), (t, _, v, *_) = shape, size
    i, j = _tile(size, shape)
    logits, word = _logits(plan, size, shape, hidden, kernel), _words(size, j)
    real = logits if V % v == 0 else jnp.where(word < V, logits, -jnp.inf)
    peak = real.max(1)
    found = [peak + jnp.log(jnp.exp(real - peak[:, None]).sum(1))]
    found += [jnp.where(word == _of_tokens(size, M, i, at), logits, 0.0).sum(1)]
    if plan.smoothing:
        found += [logits.sum(1)]  # those beyond the end are 0
    for out, numbers in zip(outs, found, strict=True):
        store(out.at[j, pl.ds(i * t, t)], numbers, ends(i * t, t, M))


def _slopes_kernel(
    plan: Plan,
    size: Warps,
    shape: tuple[int, int, int],
    spread: float,
    hidden: Any,
    kernel: Any,
    *refs: Any,
) -> None:
    (M, _, V), (t, _, v, *_) = shape, size
    i, j = _tile(size, shape)
    *rows, out = refs
    logits = _logits(plan, size, shape, hidden, kernel)
    at, normalizer, *by = (_of_tokens(size, M, i, ref) for ref in rows)
    found = slope(plan, spread, logits, _words(size, j) == at, normalizer, (by[0], by[1]))
    keep = both(ends(i * t, t, M), ends(j * v, v, V), (t, v))
    store(out.at[pl.ds(i * t, t), pl.ds(j * v, v)], found.astype(out.dtype), keep)
