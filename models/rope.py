"""Rotary position embedding. Source: Su et al. 2021, arXiv 2104.09864."""

# B batch, T length, N heads, H head size.

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], base: float
) -> Float[Array, "B T N H"]:
    """Rotate the halves of each head by position · base^(-2i/H), computed in float32."""
    H = x.shape[-1]
    frequency = base ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
