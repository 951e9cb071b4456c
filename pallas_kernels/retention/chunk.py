"""The mathematics of one chunk of one head, forward and backward, for every backend.

With rows i, keys j, r true places in a chunk of C, and γ the head's decay:

    out_i  = Σ_{j ≤ i} γ^(i−j) (q_i · k_j) v_j + γ^(i+1) q_i · state
    state' = γ^r state + Σ_j γ^(r−1−j) k_j v_jᵀ

No power of γ is ever negative, and none is of more than C, so nothing overflows and no γ is too
small. Places past r must hold zeros. Sun et al. 2023, arXiv 2307.08621, equation 7.
"""

# C places in a chunk, H key size, V value size.

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.block import product


class Runs(NamedTuple):
    """The runs of packed rows: of the places, down and across, and the one the state is of."""

    down: Any  # [C, 1]
    across: Any  # [1, C]
    before: Any  # [1, 1]


class Powers(NamedTuple):
    """Of the decay: between places, from the state to them and from them on, and past all."""

    within: Float[Array, "C C"]
    enter: Float[Array, "C 1"]
    leave: Float[Array, "C 1"]
    through: Float[Array, "1 1"]


def powers(decay: Any, real: Any, size: int, runs: Runs | None = None) -> Powers:
    """All powers of one head in a chunk; `decay` is log γ, `real` the number of true places.

    What is of different runs of a packed row has the power 0.
    """
    place = lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    back = place - lax.broadcasted_iota(jnp.int32, (size, size), 1)
    left = real - 1 - place
    power = lambda exponent: jnp.exp(decay * exponent.astype(jnp.float32))
    within = jnp.where(back >= 0, power(jnp.maximum(back, 0)), 0.0)
    enter = power(place + 1)
    leave = jnp.where(left >= 0, power(jnp.maximum(left, 0)), 0.0)
    through = power(jnp.full((1, 1), real, jnp.int32))
    if runs is None:
        return Powers(within, enter, leave, through)
    down, across, before = runs
    last = across.max(-1, keepdims=True)
    return Powers(
        jnp.where(down == across, within, 0.0),
        jnp.where(down == before, enter, 0.0),
        jnp.where(down == last, leave, 0.0),
        jnp.where(last == before, through, 0.0),
    )


def forward(
    q: Float[Array, "C H"],
    k: Float[Array, "C H"],
    v: Float[Array, "C V"],
    state: Float[Array, "H V"],
    power: Powers,
) -> tuple[Float[Array, "C V"], Float[Array, "H V"]]:
    """The chunk's result and the state after it, in float32; products in the inputs' dtype."""
    scores = (product(q, k, (1, 1)) * power.within).astype(v.dtype)
    out = product(scores, v) + power.enter * product(q, state.astype(q.dtype))
    faded = (k.astype(jnp.float32) * power.leave).astype(v.dtype)
    return out, power.through * state + product(faded, v, (0, 0))


def backward(
    inputs: tuple[Array, Array, Array, Array],
    power: Powers,
    slope: Float[Array, "C V"],
    later: Float[Array, "H V"],
) -> tuple[Array, Array, Array, Array]:
    """The gradients of q, k, v and the state before, in float32.

    From `inputs` as `forward` had them, and the gradients of its two results.
    """
    q, k, v, state = inputs
    scores = (product(q, k, (1, 1)) * power.within).astype(v.dtype)
    change = (product(slope, v, (1, 1)) * power.within).astype(q.dtype)
    entered = (slope.astype(jnp.float32) * power.enter).astype(q.dtype)
    left = later.astype(v.dtype)
    faded = (k.astype(jnp.float32) * power.leave).astype(v.dtype)
    dq = product(change, k) + product(entered, state.astype(q.dtype), (1, 1))
    dk = product(change, q, (0, 0)) + power.leave * product(v, left, (1, 1))
    dv = product(scores, slope, (0, 0)) + product(faded, left)
    return dq, dk, dv, power.through * later + product(q, entered, (0, 0))
