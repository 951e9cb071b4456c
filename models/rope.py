"""Rotary position embedding. Source: Su et al. 2021, arXiv 2104.09864."""

# B batch, T length, N heads, H head size, R rotated numbers of a head.

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.models.rope_scaling import RopeScaling, powers


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], base: float
) -> Float[Array, "B T N H"]:
    """Rotate the halves of each head by position · base^(-2i/H), computed in float32."""
    return turned(x, positions, powers(base, x.shape[-1]))


def turned(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], frequency: Float[Array, " half"]
) -> Float[Array, "B T N H"]:
    """Rotate the halves of each head by position · frequency, computed in float32."""
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def check_turned(turned: int | None, head: int) -> None:
    """Raises ConfigError unless so many numbers of a head of this size can be rotated."""
    turned = head if turned is None else turned
    if turned % 2 or not 0 < turned <= head:
        raise ConfigError(
            f"turned must be even, above 0 and at most the head size {head}, not {turned}"
        )


@dataclass(frozen=True)
class Rotation:
    """The rotation of a family: its base, how it is stretched, how much of a head it turns."""

    base: float = 10_000.0
    scaling: RopeScaling | None = None
    size: int | None = None  # so many first numbers of a head are turned; None: all

    def __call__(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        R = self.size or x.shape[-1]
        front = x[..., :R]
        if self.scaling is None:
            front = turned(front, positions, powers(self.base, R))
        else:
            frequency, scale = self.scaling(self.base, R, positions.max() + 1)
            front = turned(front, positions, frequency) * jnp.asarray(scale, x.dtype)
        return front if R == x.shape[-1] else jnp.concatenate([front, x[..., R:]], -1)
