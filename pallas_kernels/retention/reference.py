"""Retention in plain JAX, twice: step by step, the definition of right, and all at once."""

# B batch, T length, N heads, H key size, V value size.

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N V"],
    decay: Float[Array, " N"],
    state: Float[Array, "B N H V"],
    runs: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
    """One place after the other: state ← γ state + k vᵀ, out = q · state, all in float32.

    At the first place of each run but run 0, the state is 0 before. Sun et al. 2023, equation 6.
    """
    runs = jnp.zeros(q.shape[:2], jnp.int32) if runs is None else runs
    stays = jnp.diff(runs, axis=1, prepend=0) == 0
    gamma = jnp.exp(decay)[:, None, None]

    def step(state: Array, place: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, stay = place
        state = jnp.where(stay[:, None, None, None], gamma * state, 0.0)
        state += k[..., :, None] * v[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    moved = [jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (q, k, v)]
    state, out = jax.lax.scan(step, state, (*moved, stays.T))
    return jnp.moveaxis(out, 0, 1).astype(q.dtype), state


def parallel(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N V"],
    decay: Float[Array, " N"],
    state: Float[Array, "B N H V"],
    runs: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
    """(q kᵀ ⊙ D) v with D_ts = γ^(t−s) for s ≤ t, and what comes of the state, all in float32.

    It holds T × T scores. Sun et al. 2023, equation 5.
    """
    T = q.shape[1]
    runs = jnp.zeros(q.shape[:2], jnp.int32) if runs is None else runs
    place = jnp.arange(T)
    power = lambda exponent: jnp.exp(decay[:, None, None] * exponent)[None]  # 1, N, …
    back = place[:, None] - place
    together = (runs[:, :, None] == runs[:, None, :]) & (back >= 0)
    fade = jnp.where(together[:, None], power(jnp.maximum(back, 0)), 0.0)
    enter = jnp.where((runs == 0)[:, None], power(place[None] + 1)[:, :, 0], 0.0)
    last = runs[:, -1:]
    leave = jnp.where((runs == last)[:, None], power(T - 1 - place[None])[:, :, 0], 0.0)
    through = jnp.where(last == 0, jnp.exp(decay * T), 0.0)
    q32, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    out = jnp.einsum("bnts,bsnv->btnv", jnp.einsum("btnh,bsnh->bnts", q32, k) * fade, v)
    out += jnp.einsum("btnh,bnhv,bnt->btnv", q32, state, enter)
    state = through[..., None, None] * state + jnp.einsum("bsnh,bsnv,bns->bnhv", k, v, leave)
    return out.astype(q.dtype), state
