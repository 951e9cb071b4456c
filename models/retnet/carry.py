"""Retention on a mesh, and over rows with padding: each device its part, a state handed on.

What a state adds to the tokens after it is a product, γ^n (q · state) for the n-th of them. So
neither devices that share a row nor tokens behind padding wait for the state before them: they
begin from 0, and what it adds is added when it is known.
"""

# B batch, T length, N heads, H key size, V value size.

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.mesh import Axes, per_shard, split_over
from jscale.models.decoder import Context
from jscale.models.retnet.forms import Form, Given, Results, root
from jscale.models.sequence import ROWS
from jscale.pallas_kernels.retention.choice import count

HEADS = Axes(*ROWS, "kv_heads", None)


def retain(form: Form, x: Given, segments: Int[Array, "B T"] | None) -> Results:
    """Retention of a whole batch, on each device its rows, heads and part of the sequence.

    Without a state, `segments` are those of packed rows, which begin anew where they change. With
    a state, tokens of segment 0 are padding, must come first in their row, and leave no trace.
    """
    length, heads = split_over(*ROWS), split_over(*HEADS[:3])
    state = Axes("batch", "kv_heads" if heads else None, None, None)

    def part(q: Array, k: Array, v: Array, decay: Array, before: Any, segments: Any) -> Results:
        if heads:
            N = q.shape[2]
            decay = lax.dynamic_slice_in_dim(decay, lax.axis_index(heads) * N, N)
        here = Given(q, k, v, decay, before)
        if length:
            return _handed_on(form, here, segments, length)
        if before is not None and segments is not None:
            return _behind_padding(form, here, segments)
        return form.run(replace(here, runs=None if segments is None else count(segments)))

    inputs = HEADS, HEADS, HEADS, Axes(None), state, ROWS
    given = x.q, x.k, x.v, x.decay, x.state, segments
    return per_shard(part, *given, inputs=inputs, outputs=(HEADS, state))


def factor(form: Form, x: Given, context: Context) -> Float[Array, "B T N"] | None:
    """What the form divides by, in float32 and without a gradient; None for 1."""
    if form.scale == "none":
        return None
    if form.scale == "decay":
        return root(x.decay, context.positions + 1)
    segments = context.segments
    runs = None if segments is None else count(segments)
    q, k, v = (lax.stop_gradient(a) for a in (x.q, x.k, x.v))
    x = replace(x, q=q, k=k, v=v, runs=runs)
    again = lambda x: retain(form, x, segments)
    return lax.stop_gradient(form.torchscale(x, context.positions, again)).astype(jnp.float32)


def _fade(x: Given, steps: Int[Array, "*B"]) -> Float[Array, "*B N"]:
    """γ^steps of each head."""
    return jnp.exp(x.decay * steps[..., None].astype(jnp.float32))


def _enter(
    x: Given, state: Float[Array, "B N H V"], steps: Int[Array, "B T"], ours: Array
) -> Float[Array, "B T N V"]:
    """γ^steps (q · state) for the tokens that are `ours` [B, T], in float32."""
    power = jnp.where(ours[..., None], _fade(x, steps), 0.0)
    q = x.q.astype(jnp.float32) * power[..., None]
    return jnp.einsum("btnh,bnhv->btnv", q, state)


def _behind_padding(form: Form, x: Given, segments: Int[Array, "B T"]) -> Results:
    """Rows of which some begin with padding, each going on from its state."""
    assert x.state is not None
    real = segments != 0
    first = jnp.take_along_axis(segments, real.argmax(1)[:, None], 1)
    runs = count(jnp.where(real, segments, first))
    k = jnp.where(real[..., None, None], x.k, jnp.zeros((), x.k.dtype))
    out, own = form.run(replace(x, k=k, state=None, runs=runs))
    steps = real.cumsum(1)
    out = out.astype(jnp.float32) + _enter(x, x.state, steps, real & (runs == 0))
    through = jnp.where(runs[:, -1:] == 0, _fade(x, steps[:, -1]), 0.0)
    return out.astype(x.q.dtype), own + through[..., None, None] * x.state


def _handed_on(form: Form, x: Given, segments: Any, axes: tuple[str, ...]) -> Results:
    """A part of a row, of which devices along `axes` have one each, in their order."""
    B, T, N, H = x.q.shape
    segments = jnp.ones((B, T), jnp.int32) if segments is None else segments
    runs = count(segments)
    out, own = form.run(replace(x, state=None, runs=runs))
    every = lambda a: lax.all_gather(a, axes)
    owns, firsts, lasts = every(own), every(segments[:, 0]), every(segments[:, -1])
    whole = every(runs[:, -1] == 0)
    goes_on = jnp.concatenate([jnp.ones_like(whole[:1]), firsts[1:] == lasts[:-1]])
    fade = jnp.exp(x.decay * T)[:, None, None]

    def step(state: Array, part: Any) -> tuple[Array, Array]:
        own, whole, goes_on = part
        wide = lambda a: a[:, None, None, None]
        enters = jnp.where(wide(goes_on), state, 0.0)
        return own + jnp.where(wide(whole), fade * enters, 0.0), enters

    start = jnp.zeros_like(own) if x.state is None else x.state
    last, enters = lax.scan(step, start, (owns, whole, goes_on))
    mine = lax.dynamic_index_in_dim(enters, lax.axis_index(axes), keepdims=False)
    steps = jnp.broadcast_to(jnp.arange(1, T + 1), (B, T))
    out = out.astype(jnp.float32) + _enter(x, mine, steps, runs == 0)
    return out.astype(x.q.dtype), last


def padding_first(
    tokens: Int[Array, "B T"], context: Context
) -> tuple[tuple[Int[Array, "B T"], Context], Int[Array, "B T"]]:
    """Tokens with those of segment 0 moved to the front, and where each token is now.

    The memory after a row is then that after its last true token, wherever its padding was.
    """
    assert context.segments is not None
    order = jnp.argsort(context.segments != 0, axis=1, stable=True)
    move = lambda x: jnp.take_along_axis(x, order, 1)
    tokens = move(tokens)
    positions, segments = move(context.positions), move(context.segments)
    moved = context._replace(positions=positions, segments=segments, tokens=tokens)
    return (tokens, moved), jnp.argsort(order, axis=1)
