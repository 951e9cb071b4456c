"""Retention on a TPU: a grid over rows, heads and chunks, the state in VMEM between the chunks.

The chunks of one head run one after another, so that the state is neither written nor read. For
the backward pass, which runs them from the end, the state before each chunk is kept. Where the
length is no multiple of a chunk, what lies past the end of the inputs is taken as 0.
"""

# B batch, T length, N heads, H key size, V value size, C places in a chunk, M chunks.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.retention import chunk

PLACES = 256  # in a chunk, at most
FEWEST = 16  # below, a chunk does not fill the registers
WIDEST = 512  # key or value sizes of which all that a chunk needs is in VMEM


def unfit(call: Any) -> str | None:
    """Why the kernel cannot compute a call; None if it can."""
    if call.segments:
        return "does not take segments"
    if call.length < FEWEST:
        return f"needs {FEWEST} tokens or more"
    if max(call.head, call.value) > WIDEST:
        return f"needs keys and values of size {WIDEST} or less"
    if call.dtype not in ("float32", "bfloat16"):
        return "takes float32 and bfloat16 only"
    return None


def kernel(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N V"],
    decay: Float[Array, " N"],
    state: Float[Array, "B N H V"],
    runs: Int[Array, "B T"] | None = None,
    size: int | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
    """As `reference`, without runs; products in `q`'s dtype, sums in float32."""
    assert runs is None
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    size = places(q, v) if size is None else size
    out, last = _retain(min(size, q.shape[2]), q, k, v, state, decay)
    return out.swapaxes(1, 2), last


def places(q: Float[Array, "B N T H"], v: Float[Array, "B N T V"]) -> int:
    """How many tokens make a chunk: fewer of large float32 heads, whose tiles would not fit VMEM
    beside what does not fit the registers."""
    large = max(q.shape[-1], v.shape[-1]) > WIDEST // 2 and q.dtype == jnp.float32
    return PLACES // 2 if large else PLACES


def _forward_kernel(length: int, decay: Any, q: Any, k: Any, v: Any, *refs: Any) -> None:
    """One chunk. `kept` is there only where a gradient will be asked for."""
    start, out, last, *kept, state = refs
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        state[...] = start[0, 0]

    for ref in kept:
        ref[0, 0, 0] = state[...]
    size = q.shape[2]
    real = jnp.minimum(length - step * size, size)
    power = chunk.powers(decay[pl.program_id(1)], real, size)
    tiles = [_true(x[0, 0], real, length % size != 0) for x in (q, k, v)]
    result, after = chunk.forward(tiles[0], tiles[1], tiles[2], state[...], power)
    out[0, 0] = result.astype(out.dtype)
    state[...] = after

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        last[0, 0] = after


def _backward_kernel(length: int, decay: Any, q: Any, k: Any, v: Any, *refs: Any) -> None:
    """One chunk, of which the last comes first."""
    before, slope, last, dq, dk, dv, first, later = refs
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        later[...] = last[0, 0]

    size = q.shape[2]
    place = pl.num_programs(2) - 1 - step
    real = jnp.minimum(length - place * size, size)
    power = chunk.powers(decay[pl.program_id(1)], real, size)
    tiles = [_true(x[0, 0], real, length % size != 0) for x in (q, k, v, slope)]
    given = tiles[0], tiles[1], tiles[2], before[0, 0, 0]
    *grads, earlier = chunk.backward(given, power, tiles[3], later[...])
    for ref, grad in zip((dq, dk, dv), grads, strict=True):
        ref[0, 0] = grad.astype(ref.dtype)
    later[...] = earlier

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        first[0, 0] = earlier


def _true(tile: Array, real: Array, edge: bool) -> Array:
    """The tile with zeros past the end, where anything may lie."""
    if not edge:
        return tile
    place = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0)
    return jnp.where(place < real, tile, jnp.zeros_like(tile))


def _blocks(size: int, chunks: int, shape: tuple[int, int], back: bool) -> tuple[Any, ...]:
    """Blocks of keys, of values, of a head's state, and of the states before chunks."""
    H, V = shape
    at = (lambda m: chunks - 1 - m) if back else (lambda m: m)
    return (
        pl.BlockSpec((1, 1, size, H), lambda b, n, m: (b, n, at(m), 0)),
        pl.BlockSpec((1, 1, size, V), lambda b, n, m: (b, n, at(m), 0)),
        pl.BlockSpec((1, 1, H, V), lambda b, n, m: (b, n, 0, 0)),
        pl.BlockSpec((1, 1, 1, H, V), lambda b, n, m: (b, n, at(m), 0, 0)),
    )


def _call(body: Any, grid: tuple[int, ...], blocks: Any, outs: Any, shapes: Any, state: Any) -> Any:
    # Interpreted, these would have to be told of the axes of vmap too.
    return pl.pallas_call(
        body,
        grid=grid,
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *blocks],
        out_specs=outs,
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM(state, jnp.float32)],
        compiler_params=interpret.tpu_parameters("parallel", "parallel", "arbitrary"),
        interpret=interpret.tpu(),
        name="retention" + body.func.__name__.removesuffix("_kernel"),
    )


def _forward(
    size: int, q: Array, k: Array, v: Array, state: Array, decay: Array, keep: bool = True
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    (B, N, T, H), V = q.shape, v.shape[-1]
    M = pl.cdiv(T, size)
    keys, values, whole, each = _blocks(size, M, (H, V), back=False)
    shapes = [
        jax.ShapeDtypeStruct((B, N, T, V), q.dtype),
        jax.ShapeDtypeStruct(state.shape, jnp.float32),
        jax.ShapeDtypeStruct((B, N, M, H, V), jnp.float32),
    ]
    body, blocks = partial(_forward_kernel, T), [keys, keys, values, whole]
    outs = [values, whole, each]
    if not keep:
        outs, shapes = outs[:2], shapes[:2]
    out, last, *kept = _call(body, (B, N, M), blocks, outs, shapes, (H, V))(decay, q, k, v, state)
    return (out, last), (q, k, v, *kept, decay)


def _backward(size: int, saved: tuple[Any, ...], slopes: tuple[Array, Array]) -> tuple[Array, ...]:
    q, k, v, states, decay = saved
    (B, N, T, H), V = q.shape, v.shape[-1]
    M = pl.cdiv(T, size)
    keys, values, whole, each = _blocks(size, M, (H, V), back=True)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, slopes[1])]
    body, blocks = partial(_backward_kernel, T), [keys, keys, values, each, values, whole]
    outs = [keys, keys, values, whole]
    run = _call(body, (B, N, M), blocks, outs, shapes, (H, V))
    return *run(decay, q, k, v, states, *slopes), jnp.zeros_like(decay)


def _primal(
    size: int, q: Array, k: Array, v: Array, state: Array, decay: Array
) -> tuple[Array, Array]:
    return _forward(size, q, k, v, state, decay, keep=False)[0]


_retain = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_retain.defvjp(_forward, _backward)
