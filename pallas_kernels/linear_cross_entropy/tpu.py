"""Linear cross-entropy on TPU, through Pallas and Mosaic.

A product of matrices, tile by tile, of which a tile of logits is used as soon as it is summed:
for log Σ exp, kept beside it from tile to tile of the vocabulary, or for the logits' gradient.
"""

# M tokens, D model size, V vocabulary (of this device, where it is split).

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.block import product
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.grouped_matmul.tiles import LANES, Tiles, limit
from jscale.pallas_kernels.linear_cross_entropy.fused import Kernels, fused
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan, capped, slope
from jscale.pallas_kernels.linear_cross_entropy.tiles import TPU, Extent, Sizes


def refuses(call: Any) -> str | None:
    """Why the kernels cannot compute a call: numbers that Mosaic does not multiply; else None."""
    for dtype in (call.dtype, call.weights):
        if dtype not in ("float32", "bfloat16"):
            return f"computes in float32 and bfloat16, not in {dtype}"
    return None


def kernel(
    plan: Plan,
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    targets: Any,
    weights: Any = None,
    size: Sizes | None = None,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Log-probabilities and normalizers by kernels for TPU; products in the dtype of `hidden`."""
    (M, D), V = hidden.shape, kernel.shape[1]
    extent = Extent(M, D, V, str(hidden.dtype), str(kernel.dtype))
    size = size or TPU.of(device().kind, extent)
    return fused(Kernels(measure, slopes, size), plan, hidden, kernel, targets)


def measure(size: Sizes, plan: Plan, hidden: Array, kernel: Array, at: Array) -> tuple[Any, ...]:
    """As `Kernels` says."""
    given = hidden.shape[0]
    hidden, kernel, at = _filled(hidden, kernel, at)
    M, (D, V), t = hidden.shape[0], kernel.shape, size.measure.rows
    count = 3 if plan.smoothing else 2
    row = pl.BlockSpec((1, t), lambda i, j, k: (0, i))
    out = _call(
        partial(_measure_kernel, plan, size.measure, (D, V)),
        *(size.measure, hidden, kernel, [at]),
        [row] * count,
        [jax.ShapeDtypeStruct((1, M), jnp.float32)] * count,
        [pltpu.VMEM((t, LANES), jnp.float32)] * (count + 1),
    )
    return *(x[0, :given] for x in out), *([] if plan.smoothing else [None])


def slopes(
    size: Sizes, plan: Plan, hidden: Array, kernel: Array, at: Array, normalizer: Array, by: Any
) -> Float[Array, "M V"]:
    """As `Kernels` says, in the dtype of `hidden`."""
    given = hidden.shape[0]
    hidden, kernel, at, normalizer, *by = _filled(hidden, kernel, at, normalizer, *by)
    M, (D, V), (t, _, v) = hidden.shape[0], kernel.shape, size.slopes
    out = _call(
        partial(_slopes_kernel, plan, size.slopes, (D, V), plan.spread(V)),
        *(size.slopes, hidden, kernel, [at, normalizer, *by]),
        pl.BlockSpec((t, v), lambda i, j, k: (i, j)),
        jax.ShapeDtypeStruct((M, V), hidden.dtype),
        [],
    )
    return out[:given]


def _filled(hidden: Array, kernel: Array, *rows: Array) -> tuple[Array, ...]:
    """Fewer tokens than 16, or a size below it, filled up: Mosaic masks no part of a register."""
    few, thin = (max(0, 16 - length) for length in hidden.shape)
    if not few and not thin:
        return hidden, kernel, *rows
    hidden, kernel = jnp.pad(hidden, ((0, few), (0, thin))), jnp.pad(kernel, ((0, thin), (0, 0)))
    return hidden, kernel, *(jnp.pad(x, (0, few)) for x in rows)


def _call(
    body: Any,
    size: Tiles,
    hidden: Array,
    kernel: Array,
    rows: list[Array],
    out_specs: Any,
    out_shape: Any,
    scratch: list[Any],
) -> Any:
    """A kernel over tiles of tokens, of the vocabulary and of the model's size, with sums."""
    (M, D), V, (t, d, v) = hidden.shape, kernel.shape[1], size
    row = pl.BlockSpec((1, t), lambda i, j, k: (0, i))
    return pl.pallas_call(
        body,
        grid=(-(-M // t), -(-V // v), -(-D // d)),
        in_specs=[
            pl.BlockSpec((t, d), lambda i, j, k: (i, k)),
            pl.BlockSpec((d, v), lambda i, j, k: (k, j)),
            *([row] * len(rows)),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM((t, v), jnp.float32), *scratch],
        compiler_params=interpret.tpu_parameters(
            "parallel", "arbitrary", "arbitrary", vmem_limit_bytes=limit(device().kind)
        ),
        interpret=interpret.tpu(),
        name="linear_cross_entropy" + body.func.__name__.removesuffix("_kernel"),
    )(hidden, kernel, *(x[None] for x in rows))


def _add(size: Tiles, D: int, hidden: Any, kernel: Any, sums: Any) -> None:
    """Adds one product to the sums of a tile."""
    k, last, rest = pl.program_id(2), pl.num_programs(2) - 1, D % size.inner

    @pl.when(k == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    def add(edge: bool) -> None:
        rows, matrix = hidden[...], kernel[...].astype(hidden.dtype)
        if edge:  # what lies beyond the end may be anything, and 0 · NaN is NaN
            rows, matrix = _before(rows, rest, 1), _before(matrix, rest, 0)
        sums[...] += product(rows, matrix)

    if rest:
        pl.when(k < last)(partial(add, False))
        pl.when(k == last)(partial(add, True))
    else:
        add(False)


def _before(tile: Any, end: int, axis: int) -> Any:
    """The tile with zeros from `end` on."""
    there = lax.broadcasted_iota(jnp.int32, tile.shape, axis) < end
    return jnp.where(there, tile, jnp.zeros_like(tile))


def _column(row: Any) -> Any:
    """A row [1, t] as a column."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _words(size: Tiles, j: Any) -> Any:
    """Which of the vocabulary a tile's columns are."""
    return lax.broadcasted_iota(jnp.int32, (size.rows, size.outer), 1) + j * size.outer


def _measure_kernel(
    plan: Plan, size: Tiles, shape: tuple[int, int], hidden: Any, kernel: Any, at: Any, *refs: Any
) -> None:
    """One product; with the last for a tile of logits, what they add to each token's numbers."""
    (D, V), j, last = shape, pl.program_id(1), pl.num_programs(1) - 1
    count = 3 if plan.smoothing else 2
    outs, sums, peaks, *numbers = refs[:count], *refs[count:]
    _add(size, D, hidden, kernel, sums)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        @pl.when(j == 0)
        def _() -> None:
            peaks[...] = jnp.full_like(peaks, -jnp.inf)
            for number in numbers:
                number[...] = jnp.zeros_like(number)

        word = _words(size, j)
        logits = capped(plan, sums[...])
        there = word < V if V % size.outer else None
        inside = lambda x, other: x if there is None else jnp.where(there, x, other)
        old = peaks[:, :1]
        new = jnp.maximum(old, inside(logits, -jnp.inf).max(1, keepdims=True))
        hit = word == _column(at[...])
        found = [
            numbers[0][:, :1] * jnp.exp(old - new) + _sum(inside(jnp.exp(logits - new), 0.0)),
            numbers[1][:, :1] + _sum(jnp.where(hit, logits, 0.0)),
            *(number[:, :1] + _sum(inside(logits, 0.0)) for number in numbers[2:]),
        ]
        peaks[...] = jnp.broadcast_to(new, peaks.shape)
        for number, x in zip(numbers, found, strict=True):
            number[...] = jnp.broadcast_to(x, number.shape)

        @pl.when(j == last)
        def _() -> None:
            outs[0][...] = (peaks[...] + jnp.log(numbers[0][...])).T[:1]
            for out, number in zip(outs[1:], numbers[1:], strict=True):
                out[...] = number[...].T[:1]


def _sum(x: Any) -> Any:
    return x.sum(1, keepdims=True)


def _slopes_kernel(
    plan: Plan,
    size: Tiles,
    shape: tuple[int, int],
    spread: float,
    hidden: Any,
    kernel: Any,
    *refs: Any,
) -> None:
    """One product; with the last for a tile of logits, their gradient."""
    at, normalizer, *by, out, sums = refs
    j = pl.program_id(1)
    _add(size, shape[0], hidden, kernel, sums)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        hit = _words(size, j) == _column(at[...])
        logits = capped(plan, sums[...])
        columns = _column(by[0][...]), _column(by[1][...])
        found = slope(plan, spread, logits, hit, _column(normalizer[...]), columns)
        out[...] = found.astype(out.dtype)
