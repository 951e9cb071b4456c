"""Multi-scale retention as a layer: projections, rotation, the form, the norm of each head, a gate.

Source: Sun et al. 2023, arXiv 2307.08621.
"""

# B batch, T length, D model size, N heads, H key size, V value size.

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.mesh import alone, constrain
from jscale.models.decoder import Context
from jscale.models.feed import Style
from jscale.models.initial import Fans, named
from jscale.models.layers import project, project_at_once
from jscale.models.retnet.carry import factor, retain
from jscale.models.retnet.forms import Chunkwise, Given, Recurrent

INNER, OUTER = ("embed", "kv_heads", "head"), ("kv_heads", "head", "embed")
# Keys and values are every head's own. As "heads" they would be counted as those of attention,
# whose scores cost more the longer the row.
LAID = ("batch", "length", "kv_heads", "head")


class Memory(NamedTuple):
    """What decoding keeps of all tokens before: a matrix a head, of one size for any length."""

    state: Float[Array, "*layers B N H V"]


def decays(heads: int) -> Float[Array, " N"]:
    """log γ of each head, γ = 1 − 2^(−5−head)."""
    return jnp.asarray(np.log1p(-(2.0 ** (-5 - np.arange(heads)))), jnp.float32)


def rotate(x: Float[Array, "B T N H"], positions: Int[Array, "B T"]) -> Float[Array, "B T N H"]:
    """Rotate the halves of each head by position · 10000^(−i/(H/2−1)), in float32.

    The slowest angle is 1/10000 itself, where rotary positions end above it.
    """
    half = x.shape[-1] // 2
    angle = positions[..., None, None].astype(jnp.float32) * 1e4 ** -jnp.linspace(0, 1, half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Retention(nnx.Module):
    """Multi-scale retention with a gate: each head normalised, times silu(x G), projected."""

    def __init__(self, c: Any, rngs: nnx.Rngs, style: Style):  # c is a RetNet
        self.c = c
        key, value = c.dim // c.heads, c.value // c.heads

        def first(*shape: int, into: int, gain: float = 1.0, own: float = 2**-2.5) -> Array:
            fans = Fans(into, math.prod(shape) // into)
            if c.init != "torchscale":
                return style.scheme.matrix(rngs.params(), shape, fans, gain)
            bound = gain * own * math.sqrt(6 / (fans.into + fans.out))  # Xavier's, uniform
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        def inner(size: int, gain: float = 1.0) -> nnx.Param:
            return named(first(c.dim, c.heads, size, into=c.dim, gain=gain), *INNER)

        self.q, self.k = inner(key), inner(key)
        self.v, self.g = inner(value, style.gain), inner(value)
        outer = first(c.heads, value, c.dim, into=c.value, gain=style.gain, own=1.0)
        self.o = named(outer, *OUTER)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, memory: Memory | None
    ) -> tuple[Float[Array, "B T D"], Memory | None]:
        q, k, v, g = self.project(x)
        k = k * k.shape[-1] ** -0.5
        q, k = (rotate(a, context.positions) for a in (q, k))
        given = Given(q, k, v, decays(self.c.heads))
        if memory is None:
            form, after = self.c.form, None
            out, _ = retain(form, given, context.segments)
        else:
            form = Recurrent(self.c.form.scale)  # whose factor needs nothing of the past
            given = replace(given, state=memory.state)
            out, state = retain(Chunkwise(), given, context.segments)
            after = Memory(state)
        y = normalise(out, factor(form, given, context), self.c.eps)
        y = constrain(y * jax.nn.silu(g), *LAID)
        return project("btnv,nvd->btd", y, self.o[...]), after

    def project(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T N _"]]:
        """Queries, keys, values and gates, in one product where that saves more than it costs."""
        weights = [w[...] for w in (self.q, self.k, self.v, self.g)]
        if x.shape[1] == 1 or not alone():
            y = [project("btd,dnh->btnh", x, w) for w in weights]
        else:
            ends = np.cumsum([math.prod(w.shape[1:]) for w in weights])[:-1]
            flat = jnp.split(project_at_once(x, *weights), ends, -1)
            pairs = zip(flat, weights, strict=True)
            y = [part.reshape(*x.shape[:2], *w.shape[1:]) for part, w in pairs]
        return [constrain(part, *LAID) for part in y]


def normalise(
    x: Float[Array, "B T N V"], factor: Float[Array, "B T N"] | None, eps: float
) -> Float[Array, "B T N V"]:
    """x / factor, over the root of its mean square plus eps, for each head, in float32."""
    y = x.astype(jnp.float32)
    more = eps if factor is None else eps * jnp.square(factor)[..., None]
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + more)).astype(x.dtype)
