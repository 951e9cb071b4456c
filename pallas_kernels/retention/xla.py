"""Retention chunk by chunk in plain XLA: scores of one chunk at a time, and a state between them.

The backward pass walks the chunks from the end, and makes their scores again; what is kept for it
is the inputs and the state before each chunk.
"""

# B batch, T length, N heads, H key size, V value size, C places in a chunk, M chunks.

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.pallas_kernels.retention import chunk

PLACES = 128  # in a chunk, at most


def chunked(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N V"],
    decay: Float[Array, " N"],
    state: Float[Array, "B N H V"],
    runs: Int[Array, "B T"] | None = None,
    size: int = PLACES,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
    """As `reference`, in memory that grows with T; products in `q`'s dtype, sums in float32."""
    T = q.shape[1]
    size = min(size, T)
    marks = places(runs, T, size)
    q, k, v = (split(x, size) for x in (q, k, v))
    out, state = _retain(T, q, k, v, state, decay, marks)
    return join(out, T), state


def split(x: Float[Array, "B T N H"], size: int) -> Float[Array, "M B N C H"]:
    """Chunks first, then heads; the last chunk is filled with zeros."""
    B, T, N, H = x.shape
    count = -(-T // size)
    x = jnp.pad(x, ((0, 0), (0, count * size - T), (0, 0), (0, 0)))
    return x.reshape(B, count, size, N, H).transpose(1, 0, 3, 2, 4)


def join(x: Float[Array, "M B N C H"], length: int) -> Float[Array, "B T N H"]:
    """What `split` took apart."""
    M, B, N, C, H = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(B, M * C, N, H)[:, :length]


def places(runs: Array | None, length: int, size: int) -> tuple[Array, Array] | None:
    """The runs of each chunk [M, B, C], and the run before it [M, B]."""
    if runs is None:
        return None
    count = -(-length // size)
    filled = jnp.pad(runs, ((0, 0), (0, count * size - length)), mode="edge")
    tiled = filled.reshape(-1, count, size).swapaxes(0, 1)
    return tiled, jnp.pad(tiled[:-1, :, -1], ((1, 0), (0, 0)))


def _powers(decay: Array, size: int, real: Array, runs: Any) -> chunk.Powers:
    """For every row and head; for all rows at once where none is packed."""
    heads = jax.vmap(chunk.powers, (0, None, None, None))
    if runs is None:
        return jax.tree.map(lambda x: x[None], heads(decay, real, size, None))

    def row(runs: Array, before: Array) -> chunk.Powers:
        marks = chunk.Runs(runs[:, None], runs[None], before.reshape(1, 1))
        return heads(decay, real, size, marks)

    return jax.vmap(row)(*runs)


def _all(run: Any, power: chunk.Powers, *arrays: Any) -> Any:
    """`run(power, *arrays)` over all rows and heads."""
    power = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*arrays[-1].shape[:2], *x.shape[2:])), power
    )
    return jax.vmap(jax.vmap(run))(power, *arrays)


def _counts(chunks: int, size: int, length: int) -> Int[Array, "M"]:
    return jnp.minimum(length - size * jnp.arange(chunks), size).astype(jnp.int32)


def _forward(
    length: int, q: Array, k: Array, v: Array, state: Array, decay: Array, runs: Any
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    M, _, _, C, _ = q.shape

    def step(state: Array, given: Any) -> tuple[Array, tuple[Array, Array]]:
        q, k, v, real, runs = given
        one = lambda power, q, k, v, s: chunk.forward(q, k, v, s, power)
        out, after = _all(one, _powers(decay, C, real, runs), q, k, v, state)
        return after, (out.astype(q.dtype), state)

    last, (out, states) = lax.scan(step, state, (q, k, v, _counts(M, C, length), runs))
    return (out, last), (q, k, v, states, decay, runs)


def _backward(length: int, saved: tuple[Any, ...], slopes: tuple[Array, Array]) -> tuple[Any, ...]:
    q, k, v, states, decay, runs = saved
    M, _, _, C, _ = q.shape

    def step(later: Array, given: Any) -> tuple[Array, tuple[Array, ...]]:
        q, k, v, state, slope, real, runs = given
        one = lambda power, q, k, v, s, g, later: chunk.backward((q, k, v, s), power, g, later)
        power = _powers(decay, C, real, runs)
        dq, dk, dv, before = _all(one, power, q, k, v, state, slope, later)
        return before, (dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype))

    given = q, k, v, states, slopes[0], _counts(M, C, length), runs
    before, grads = lax.scan(step, slopes[1], given, reverse=True)
    return *grads, before, jnp.zeros_like(decay), None


def _primal(
    length: int, q: Array, k: Array, v: Array, state: Array, decay: Array, runs: Any
) -> tuple[Array, Array]:
    return _forward(length, q, k, v, state, decay, runs)[0]


_retain = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_retain.defvjp(_forward, _backward)
