"""Grouped matmul on TPU, through Pallas and Mosaic.

The core knows from tables in scalar memory which tile of rows meets which group's matrix, and
fetches both ahead. A tile that two groups share is visited by both: each writes its own rows.

`rows` are taken before the kernels, by XLA: within, every row would be a copy of its own from main
memory, once more for each tile of columns, where the kernels ask for whole tiles.
"""

# R rows given, M rows taken, D their size, F that of the result, E groups.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.block import product
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.grouped_matmul.rows import given_back
from jscale.pallas_kernels.grouped_matmul.tiles import TPU, Extent, Sizes, Tiles, limit
from jscale.pallas_kernels.grouped_matmul.visits import Visits, gathered, shared


def refuses(call: Any) -> str | None:
    """Why the kernels cannot compute a call: numbers that Mosaic does not multiply; else None."""
    for dtype in (call.dtype, call.weights):
        if dtype not in ("float32", "bfloat16"):
            return f"computes in float32 and bfloat16, not in {dtype}"
    return None


def kernel(
    x: Float[Array, "R D"],
    w: Float[Array, "E D F"],
    sizes: Int[Array, " E"],
    rows: Int[Array, " M"] | None = None,
    size: Sizes | None = None,
) -> Float[Array, "M F"]:
    """As `reference`, by kernels for TPU; sums in float32, products in x's dtype."""
    M, (E, D, F) = (x if rows is None else rows).shape[0], w.shape
    if 0 in (M, E, D, F):
        return jnp.zeros((M, F), x.dtype)
    extent = Extent(M, D, F, E, str(x.dtype), str(w.dtype))
    return _product(size or TPU.of(device().kind, extent), x, w, sizes, rows)


def _multiplied(
    size: Tiles, turned: bool, x: Float[Array, "M _"], w: Float[Array, "E D F"], sizes: Array
) -> Float[Array, "M _"]:
    """Rows [M, D] times the matrix of their group; turned, rows [M, F] times its transpose."""
    M, (_, D, F), t = x.shape[0], w.shape, size.rows
    summed, across = (size.outer, size.inner) if turned else (size.inner, size.outer)
    length, width = (F, D) if turned else (D, F)
    steps, visits = -(-length // summed), shared(sizes, M, t)

    def pinned(v: Any, k: Any, known: Visits) -> Any:
        return jnp.where(v < known.live[0], k, steps - 1)

    def matrix(n: Any, v: Any, k: Any, known: Visits) -> tuple[Any, Any, Any]:
        k = pinned(v, k, known)
        return (known.group[v], n, k) if turned else (known.group[v], k, n)

    return pl.pallas_call(
        partial(_rows_kernel, size, turned, length),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(-(-width // across), visits.tile.shape[0], steps),
            in_specs=[
                pl.BlockSpec(
                    (t, summed), lambda n, v, k, known: (known.source[v], pinned(v, k, known))
                ),
                pl.BlockSpec((None, size.inner, size.outer), matrix),
            ],
            out_specs=pl.BlockSpec((t, across), lambda n, v, k, known: (known.tile[v], n)),
            scratch_shapes=[pltpu.VMEM((t, across), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((M, width), x.dtype),
        compiler_params=interpret.tpu_parameters(
            "parallel", "arbitrary", "arbitrary", vmem_limit_bytes=limit(device().kind)
        ),
        interpret=interpret.tpu(),
        name="grouped_matmul_backward" if turned else "grouped_matmul_forward",
    )(visits, x, w)


def _rows_kernel(
    size: Tiles, turned: bool, length: int, known: Visits, x: Any, w: Any, out: Any, sums: Any
) -> None:
    v, k, last = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
    summed, axis = (size.outer, 1) if turned else (size.inner, 0)

    @pl.when(k == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    def add(rest: int) -> None:
        rows, matrix = x[...], w[...].astype(x.dtype)
        if rest:  # what lies beyond the end may be anything, and 0 · NaN is NaN
            rows, matrix = _before(rows, rest, 1), _before(matrix, rest, axis)
        sums[...] += product(rows, matrix, (1, axis))

    live, rest = v < known.live[0], length % summed
    if rest:
        pl.when(live & (k < last))(partial(add, 0))
        pl.when(live & (k == last))(partial(add, rest))
    else:
        pl.when(live)(partial(add, 0))

    @pl.when(k == last)
    def _() -> None:
        mine = _own(known, v, known.tile[v], out.shape)
        out[...] = jnp.where(mine, sums[...].astype(out.dtype), out[...])


def _before(tile: Any, end: int, axis: int) -> Any:
    """The tile with zeros from `end` on."""
    there = lax.broadcasted_iota(jnp.int32, tile.shape, axis) < end
    return jnp.where(there, tile, jnp.zeros_like(tile))


def _own(known: Visits, v: Any, tile: Any, shape: tuple[int, ...]) -> Any:
    """Which rows of a tile are the visit's."""
    row = lax.broadcasted_iota(jnp.int32, shape, 0) + tile * shape[0]
    return (row >= known.low[v]) & (row < known.high[v])


def _matrices(
    size: Tiles, x: Float[Array, "M D"], by: Float[Array, "M F"], w: Array, sizes: Array
) -> Float[Array, "E D F"]:
    """Each group's rows of one times those of the other, in w's dtype; without rows, zeros."""
    (M, D), F = x.shape, by.shape[1]
    t, d, f = size
    visits = gathered(sizes, M, t)
    return pl.pallas_call(
        _matrices_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(-(-D // d), -(-F // f), visits.tile.shape[0]),
            in_specs=[
                pl.BlockSpec((t, d), lambda i, j, v, known: (known.source[v], i)),
                pl.BlockSpec((t, f), lambda i, j, v, known: (known.source[v], j)),
            ],
            out_specs=pl.BlockSpec((None, d, f), lambda i, j, v, known: (known.group[v], i, j)),
            scratch_shapes=[pltpu.VMEM((d, f), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(w.shape, w.dtype),
        compiler_params=interpret.tpu_parameters(
            "parallel", "parallel", "arbitrary", vmem_limit_bytes=limit(device().kind)
        ),
        interpret=interpret.tpu(),
        name="grouped_matmul_matrices",
    )(visits, x, by)


def _matrices_kernel(known: Visits, x: Any, by: Any, out: Any, sums: Any) -> None:
    v, last, t = pl.program_id(2), pl.num_programs(2) - 1, x.shape[0]
    group, low, high, begin = known.group[v], known.low[v], known.high[v], known.source[v] * t

    @pl.when((v == 0) | (known.group[jnp.maximum(v - 1, 0)] != group))
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    def add(whole: bool) -> None:
        tiles = x[...], by[...]
        if not whole:  # rows of others, or beyond the end, must not even give NaN
            tiles = [
                jnp.where(_own(known, v, known.source[v], tile.shape), tile, jnp.zeros_like(tile))
                for tile in tiles
            ]
        sums[...] += product(tiles[0], tiles[1], (0, 0))

    whole = (low <= begin) & (high >= begin + t)
    pl.when(whole)(partial(add, True))
    pl.when((high > low) & jnp.logical_not(whole))(partial(add, False))

    @pl.when((v == last) | (known.group[jnp.minimum(v + 1, last)] != group))
    def _() -> None:
        out[...] = sums[...].astype(out.dtype)


def _forward(
    size: Sizes, x: Array, w: Array, sizes: Array, rows: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    return _primal(size, x, w, sizes, rows), (x, w, sizes, rows)


def _backward(
    size: Sizes, saved: tuple[Any, ...], by: Float[Array, "M F"]
) -> tuple[Array, Array, None, None]:
    x, w, sizes, rows = saved
    dx = _multiplied(size.backward, True, by, w, sizes)
    dw = _matrices(size.matrices, _taken(x, rows), by, w, sizes)
    return given_back(x, rows, dx), dw, None, None


def _primal(size: Sizes, x: Array, w: Array, sizes: Array, rows: Array | None) -> Array:
    return _multiplied(size.forward, False, _taken(x, rows), w, sizes)


def _taken(x: Float[Array, "R D"], rows: Int[Array, " M"] | None) -> Float[Array, "M D"]:
    # Where an index is out of range nothing is read: zeros there would be one more copy of all.
    return x if rows is None else x.at[rows].get(mode="clip")


_product = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_product.defvjp(_forward, _backward)
