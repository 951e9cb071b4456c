"""Gradients of the Triton kernels of attention: scores are made again, nothing is added atomically.

One program sums the gradient of a tile of queries, another that of a tile of keys and values over
all query heads that share them; each is written once (Dao 2023, arXiv 2307.08691).
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.triton_tiles import (
    TURNED,
    UPRIGHT,
    Arrays,
    Given,
    Lift,
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
    vector,
    visits,
    wide,
    write,
)
from jscale.pallas_kernels.block import product, up


def _parameters(size: Tiles) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=size.warps, num_stages=size.stages)


def _place(length: int, width: int, heads: int) -> pl.BlockSpec:
    """The block of a result of which program g writes one head."""
    return pl.BlockSpec((None, length, 1, wide(width)), lambda i, g: (*_apart(split(g, heads)), 0))


def _apart(at: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    return at[0], 0, at[1]


def queries_pass(
    p: Problem,
    size: Tiles,
    q: Array,
    k: Array,
    v: Array,
    *more: Any,
    summed: bool = False,
) -> tuple[Array, ...]:
    """The gradient of the queries, [B, T, N, H], and if `summed` their slopes' sums, [B, N, T].

    `more` are the bias, what is given, the gradient of the result, log₂ Σ 2^scores and delta.
    """
    found = visits(p, size, more[1].places)
    arrays = gather(found, q, k, v, *more)
    length = up(p.queries, size.queries)
    return pl.pallas_call(
        partial(_queries, p, size, phases(found)),
        grid=(pl.cdiv(p.queries, size.queries), p.rows * p.heads),
        in_specs=[specs(p, size, arrays, 1)],
        out_specs=[
            _place(length, p.head, p.heads),
            pl.BlockSpec((None, 1, length), lambda i, g: (*split(g, p.heads), 0)),
        ][: 1 + summed],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((p.rows, p.heads, p.queries), jnp.float32),
        ][: 1 + summed],
        interpret=p.interpret,
        name="attention_queries_backward",
        compiler_params=_parameters(size),
    )(arrays)


def keys_pass(
    p: Problem, size: Tiles, q: Array, k: Array, v: Array, bias: Any, given: Given, *more: Array
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K V"]]:
    """The gradients of the keys and of the values."""
    found = visits(p, size, given.places, by_keys=True)
    arrays = gather(found, q, k, v, bias, given, *more)
    length = up(p.keys, size.keys)
    return pl.pallas_call(
        partial(_keys, p, size, phases(found)),
        grid=(pl.cdiv(p.keys, size.keys), p.rows * p.kv_heads),
        in_specs=[specs(p, size, arrays, p.group)],
        out_specs=[_place(length, width, p.kv_heads) for width in (p.head, p.value)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        interpret=p.interpret,
        name="attention_keys_backward",
        compiler_params=_parameters(size),
    )(arrays)


def bias_pass(
    p: Problem, size: Tiles, q: Array, k: Array, v: Array, bias: Array, given: Given, *more: Array
) -> Float[Array, "_ _ T S"]:
    """The gradient of the bias, in its shape and dtype."""
    arrays = gather(visits(p, size, given.places), q, k, v, bias, given, *more)
    shape = p.rows, p.heads, p.queries, p.keys
    slopes = pl.pallas_call(
        partial(_bias, p, size),
        grid=(pl.cdiv(p.queries, size.queries), p.rows * p.heads),
        in_specs=[specs(p, size, arrays, 1)],
        out_specs=pl.BlockSpec(
            (None, None, up(p.queries, size.queries), up(p.keys, size.keys)),
            lambda i, g: (*split(g, p.heads), 0, 0),
        ),
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        interpret=p.interpret,
        name="attention_bias_backward",
        compiler_params=_parameters(size),
    )(arrays)
    axes = tuple(axis for axis in (0, 1) if bias.shape[axis] != shape[axis])
    return slopes.sum(axes, keepdims=True).astype(bias.dtype)


def _tile(
    p: Problem, size: Tiles, arrays: Arrays, at: Any, start: Any, begin: Any, masked: bool
) -> Any:
    """What every kernel makes of the queries from `start` and the keys from `begin`.

    A function of a layout and the four tiles: weights, and slopes in the scores and in q kᵀ.
    """
    slope = None if arrays.slopes is None else arrays.slopes[at]
    lse = vector(arrays.lse, at, start, size.queries, p.queries)
    delta = vector(arrays.delta, at, start, size.queries, p.queries)

    def of(lift: Lift, products: Any, slopes: Any) -> tuple[Any, Any, Any]:
        bias = bias_of(p, size, arrays.bias, at, start, begin)
        bias = bias.T if bias is not None and lift is TURNED else bias
        places = places_of(p, size, arrays, start, begin, lift)
        logits, inner = scores_of(p, products, bias, slope, places)
        weights = jnp.exp2(logits - lift.queries(lse))
        if masked:
            weights = jnp.where(seen_of(p, size, arrays, start, begin, lift), weights, 0.0)
        outer = weights * (slopes - lift.queries(delta))
        return weights, outer, outer if inner is None else outer * inner

    return of


def _queries(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, dq: Any, *sums: Any
) -> None:
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    start = i * size.queries
    q = matrix(arrays.q, 0, start, size.queries, p.queries, p.head)
    dout = matrix(arrays.dout, 0, start, size.queries, p.queries, p.value)

    def visit(masked: bool, j: Any, carry: list[Any]) -> list[Any]:
        total, *rows = carry
        begin = j * size.keys
        keys = matrix(arrays.k, 0, begin, size.keys, p.keys, p.head)
        values = matrix(arrays.v, 0, begin, size.keys, p.keys, p.value)
        of = _tile(p, size, arrays, 0, start, begin, masked)
        _, outer, slopes = of(UPRIGHT, product(q, keys, (1, 1)), product(dout, values, (1, 1)))
        total += product(slopes.astype(keys.dtype), keys)
        return [total, *(x + jnp.sum(outer, axis=1) for x in rows)]

    carry = [jnp.zeros((size.queries, wide(p.head)), jnp.float32)]
    carry += [jnp.zeros((size.queries,), jnp.float32) for _ in sums]
    total, *rows = loop(parts, bounds_of(arrays, i), visit, carry)
    write(dq, start, total * p.scale, p.queries, p.head)
    for ref, x in zip(sums, rows, strict=True):
        note(ref, start, x, p.queries)


def _keys(
    p: Problem, size: Tiles, parts: tuple[bool, bool, bool], arrays: Arrays, dk: Any, dv: Any
) -> None:
    j = pl.program_id(0)
    begin = j * size.keys
    keys = matrix(arrays.k, 0, begin, size.keys, p.keys, p.head)
    values = matrix(arrays.v, 0, begin, size.keys, p.keys, p.value)
    bounds = bounds_of(arrays, j)

    def visit(at: Any, masked: bool, i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        start = i * size.queries
        q = matrix(arrays.q, at, start, size.queries, p.queries, p.head)
        dout = matrix(arrays.dout, at, start, size.queries, p.queries, p.value)
        of = _tile(p, size, arrays, at, start, begin, masked)
        # Scores turned around, keys by queries: weights are then factors without being moved.
        weights, _, slopes = of(TURNED, product(keys, q, (1, 1)), product(values, dout, (1, 1)))
        more, most = slopes.astype(q.dtype), weights.astype(dout.dtype)
        return carry[0] + product(more, q), carry[1] + product(most, dout)

    one = lambda at, carry: loop(parts, bounds, partial(visit, at), carry)
    carry = tuple(jnp.zeros((size.keys, wide(w)), jnp.float32) for w in (p.head, p.value))
    carry = one(0, carry) if p.group == 1 else lax.fori_loop(0, p.group, one, carry)
    write(dk, begin, carry[0] * p.scale, p.keys, p.head)
    write(dv, begin, carry[1], p.keys, p.value)


def _bias(p: Problem, size: Tiles, arrays: Arrays, dbias: Any) -> None:
    """The slopes in the scores of all tiles, those that are not seen too: all must be written."""
    start = pl.program_id(0) * size.queries
    q = matrix(arrays.q, 0, start, size.queries, p.queries, p.head)
    dout = matrix(arrays.dout, 0, start, size.queries, p.queries, p.value)

    def visit(j: Any, carry: Any) -> Any:
        begin = j * size.keys
        keys = matrix(arrays.k, 0, begin, size.keys, p.keys, p.head)
        values = matrix(arrays.v, 0, begin, size.keys, p.keys, p.value)
        of = _tile(p, size, arrays, 0, start, begin, True)
        _, slopes, _ = of(UPRIGHT, product(q, keys, (1, 1)), product(dout, values, (1, 1)))
        where = dbias.at[pl.ds(start, size.queries), pl.ds(begin, size.keys)]
        queries = (start + jnp.arange(size.queries) < p.queries)[:, None]
        keep = queries & (begin + jnp.arange(size.keys) < p.keys)[None, :]
        plgpu.store(where, slopes, mask=keep)
        return carry

    lax.fori_loop(0, pl.cdiv(p.keys, size.keys), visit, 0)
