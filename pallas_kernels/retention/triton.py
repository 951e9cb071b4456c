"""Retention on a GPU, lowered through Triton: the state stays in registers from chunk to chunk.

Forward, one program has all keys and a slice of the values of one head, and runs the chunks one
after another. Backward, such a program runs them from the end, for what the state after each chunk
has as its gradient; then each chunk is a program of its own.
"""

# B batch, T length, N heads, H key size, V value size, C places in a chunk, M chunks.

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.triton_tiles import split, wide
from jscale.pallas_kernels.block import product, up
from jscale.pallas_kernels.retention import chunk

WIDEST = {"float32": 128, "bfloat16": 256, "float16": 256}  # keys of a state, for registers
MOST = 65_535  # programs along the second axis of a grid
FEWEST = 16  # below, there is nothing for tensor cores
WARPS = 8


class Sizes(NamedTuple):
    """Of a chunk, and of the values that a program has."""

    places: int
    values: int


def sizes(dtype: str, keys: int) -> Sizes:
    """The largest that leave no more than a few registers in memory, as compiled for an H100."""
    return Sizes(32, 32) if dtype == "float32" or keys > 128 else Sizes(64, 64)


@dataclass(frozen=True)
class Problem:
    """The sizes of a call; C places in a chunk, W values in a slice."""

    T: int
    N: int
    H: int
    V: int
    C: int
    W: int

    @property
    def chunks(self) -> int:
        return -(-self.T // self.C)


def unfit(call: Any) -> str | None:
    """Why the kernels cannot compute a call; None if they can."""
    if call.segments:
        return "does not take segments"
    if call.length < FEWEST:
        return f"needs {FEWEST} tokens or more"
    if call.dtype not in WIDEST:
        return "takes float32, bfloat16 and float16 only"
    if call.head > WIDEST[call.dtype]:
        return f"needs keys of size {WIDEST[call.dtype]} or less in {call.dtype}"
    if max(call.length, call.value) > MOST * FEWEST:
        return f"takes up to {MOST * FEWEST:,} tokens"
    return None


def triton(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N V"],
    decay: Float[Array, " N"],
    state: Float[Array, "B N H V"],
    runs: Int[Array, "B T"] | None = None,
    size: Sizes | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
    """As `reference`, without runs; products in `q`'s dtype, sums in float32."""
    assert runs is None
    (_, T, N, H), V = q.shape, v.shape[-1]
    size = size or sizes(str(q.dtype), H)
    C = min(size.places, pl.next_power_of_2(max(T, FEWEST)))
    return _retain(Problem(T, N, H, V, C, min(size.values, wide(V))), q, k, v, state, decay)


Span = tuple[Any, int, int]  # from a place, so many, of an array of a length


def _get(ref: Any, rows: Span, columns: Span) -> Any:
    """A tile of a matrix, 0 beyond it."""
    where, keep = _where((rows, columns))
    if keep is None:
        return plgpu.load(ref.at[where])
    return plgpu.load(ref.at[where], mask=keep, other=jnp.zeros((), ref.dtype))


def _put(ref: Any, tile: Any, rows: Span, columns: Span, *which: Any) -> None:
    """Store a tile of a matrix, which may be one of many."""
    where, keep = _where((rows, columns))
    into, tile = ref.at[(*which, *where)], tile.astype(ref.dtype)
    plgpu.store(into, tile) if keep is None else plgpu.store(into, tile, mask=keep)


def _where(spans: tuple[Span, Span]) -> tuple[Any, Any]:
    keep, shape = None, tuple(step for _, step, _ in spans)
    for axis, (start, step, length) in enumerate(spans):
        if length % step:
            inside = start + lax.broadcasted_iota(jnp.int32, shape, axis) < length
            keep = inside if keep is None else keep & inside
    return tuple(pl.ds(start, step) for start, step, _ in spans), keep


def _powers(p: Problem, decay: Any, m: Any) -> chunk.Powers:
    return chunk.powers(decay[0], jnp.minimum(p.T - m * p.C, p.C), p.C)


def _spans(p: Problem, m: Any, j: Any) -> tuple[Span, Span, Span]:
    """The places of chunk m, all keys, and the values of slice j."""
    return (m * p.C, p.C, p.T), (0, wide(p.H), p.H), (j * p.W, p.W, p.V)


def _forward_kernel(p: Problem, decay: Any, q: Any, k: Any, v: Any, *refs: Any) -> None:
    """All chunks of one slice. `kept` is there only where a gradient will be asked for."""
    start, out, last, *kept = refs
    j = pl.program_id(1)

    def step(m: Any, state: Any) -> Any:
        places, keys, values = _spans(p, m, j)
        for ref in kept:
            _put(ref, state, keys, values, m)
        given = _get(q, places, keys), _get(k, places, keys), _get(v, places, values)
        result, after = chunk.forward(*given, state, _powers(p, decay, m))
        _put(out, result, places, values)
        return after

    _, keys, values = _spans(p, 0, j)
    _put(last, lax.fori_loop(0, p.chunks, step, _get(start, keys, values)), keys, values)


def _later_kernel(p: Problem, decay: Any, q: Any, slope: Any, *refs: Any) -> None:
    """The gradient of the state after each chunk, of one slice; the last chunk comes first."""
    last, laters, first = refs
    j = pl.program_id(1)

    def step(n: Any, later: Any) -> Any:
        m = p.chunks - 1 - n
        places, keys, values = _spans(p, m, j)
        _put(laters, later, keys, values, m)
        power = _powers(p, decay, m)
        queries = _get(q, places, keys)
        entered = (_get(slope, places, values).astype(jnp.float32) * power.enter).astype(q.dtype)
        return power.through * later + product(queries, entered, (0, 0))

    _, keys, values = _spans(p, 0, j)
    _put(first, lax.fori_loop(0, p.chunks, step, _get(last, keys, values)), keys, values)


def _backward_kernel(p: Problem, decay: Any, q: Any, k: Any, v: Any, *refs: Any) -> None:
    """One chunk, slice after slice of the values; `chunk.backward` with its sums in parts."""
    states, laters, slope, dq, dk, dv = refs
    m = pl.program_id(1)
    places, keys, _ = _spans(p, m, 0)
    power, (q, k) = _powers(p, decay, m), (_get(ref, places, keys) for ref in (q, k))
    scores = (product(q, k, (1, 1)) * power.within).astype(v.dtype)
    faded = (k.astype(jnp.float32) * power.leave).astype(v.dtype)

    def step(j: Any, sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        change, entered, left = sums
        values = _spans(p, m, j)[2]
        tile, back = _get(v, places, values), _get(slope, places, values)
        state, later = (_get(ref, keys, values).astype(v.dtype) for ref in (states, laters))
        _put(dv, product(scores, back, (0, 0)) + product(faded, later), places, values)
        enter = (back.astype(jnp.float32) * power.enter).astype(v.dtype)
        return (
            change + product(back, tile, (1, 1)),
            entered + product(enter, state, (1, 1)),
            left + product(tile, later, (1, 1)),
        )

    zeros = jnp.zeros((p.C, wide(p.H)), jnp.float32)
    sums = jnp.zeros((p.C, p.C), jnp.float32), zeros, zeros
    change, entered, left = lax.fori_loop(0, pl.cdiv(p.V, p.W), step, sums)
    change = (change * power.within).astype(q.dtype)
    _put(dq, product(change, k) + entered, places, keys)
    _put(dk, product(change, q, (0, 0)) + power.leave * left, places, keys)


def _blocks(p: Problem) -> tuple[Any, ...]:
    """The decay, keys, values, state, and states of all chunks of head g of all rows."""
    T, H, V = up(p.T, p.C), wide(p.H), up(p.V, p.W)
    at = lambda g: split(g, p.N)
    tall = lambda n: pl.BlockSpec((None, T, None, n), lambda g, _: (at(g)[0], 0, at(g)[1], 0))
    return (
        pl.BlockSpec((1,), lambda g, _: (at(g)[1],)),
        tall(H),
        tall(V),
        pl.BlockSpec((None, None, H, V), lambda g, _: (*at(g), 0, 0)),
        pl.BlockSpec((None, None, p.chunks, H, V), lambda g, _: (*at(g), 0, 0, 0)),
    )


def _call(body: Any, p: Problem, grid: Any, blocks: Any, outs: Any, shapes: Any) -> Any:
    return pl.pallas_call(
        partial(body, p),
        grid=grid,
        in_specs=blocks,
        out_specs=outs,
        out_shape=shapes,
        interpret=interpret.gpu(),
        name="retention" + body.__name__.removesuffix("_kernel"),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
    )


def _forward(
    p: Problem, q: Array, k: Array, v: Array, state: Array, decay: Array, keep: bool = True
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    B = q.shape[0]
    gamma, keys, values, whole, each = _blocks(p)
    shapes = [
        jax.ShapeDtypeStruct(v.shape, q.dtype),
        jax.ShapeDtypeStruct(state.shape, jnp.float32),
        jax.ShapeDtypeStruct((B, p.N, p.chunks, p.H, p.V), jnp.float32),
    ]
    outs = [values, whole, each]
    if not keep:
        outs, shapes = outs[:2], shapes[:2]
    grid, blocks = (B * p.N, pl.cdiv(p.V, p.W)), [gamma, keys, keys, values, whole]
    run = _call(_forward_kernel, p, grid, blocks, outs, shapes)
    out, last, *kept = run(decay, q, k, v, state)
    return (out, last), (q, k, v, *kept, decay)


def _backward(p: Problem, saved: tuple[Any, ...], slopes: tuple[Array, Array]) -> tuple[Array, ...]:
    q, k, v, states, decay = saved
    slope, last = slopes
    B = q.shape[0]
    gamma, keys, values, whole, each = _blocks(p)
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (states, last)]
    grid, blocks = (B * p.N, pl.cdiv(p.V, p.W)), [gamma, keys, values, whole]
    run = _call(_later_kernel, p, grid, blocks, [each, whole], shapes)
    laters, first = run(decay, q, slope, last)
    one = pl.BlockSpec(
        (None, None, None, *each.block_shape[3:]), lambda g, m: (*split(g, p.N), m, 0, 0)
    )
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    grid, blocks = (B * p.N, p.chunks), [gamma, keys, keys, values, one, one, values]
    run = _call(_backward_kernel, p, grid, blocks, [keys, keys, values], shapes)
    return *run(decay, q, k, v, states, laters, slope), first, jnp.zeros_like(decay)


def _primal(
    p: Problem, q: Array, k: Array, v: Array, state: Array, decay: Array
) -> tuple[Array, Array]:
    return _forward(p, q, k, v, state, decay, keep=False)[0]


_retain = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_retain.defvjp(_forward, _backward)
