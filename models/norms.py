"""Normalisation, as layers and as choices of a config."""

# D size of what is normalised.

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.models.layers import RMSNorm


class LayerNorm(nnx.Module):
    """(x − mean) / deviation · scale + bias, in float32. Source: Ba et al. 2016, 1607.06450."""

    def __init__(self, size: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size), out_sharding=("scale",), eager_sharding=False)
        self.bias = nnx.Param(jnp.zeros(size), out_sharding=("scale",), eager_sharding=False)

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        scale, bias = (w[...].astype(jnp.float32) for w in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


@runtime_checkable
class Norm(Protocol):
    """Which normalisation a network uses: `build` makes one for vectors of a size."""

    def build(self, size: int) -> nnx.Module: ...


@dataclass(frozen=True)
class Layer:
    """Layer normalisation, with a scale and a bias.

    Raises:
        ConfigError: an eps that is not positive.
    """

    eps: float = 1e-5  # added to the variance

    def __post_init__(self) -> None:
        _check(self.eps)

    def build(self, size: int) -> LayerNorm:
        return LayerNorm(size, self.eps)


@dataclass(frozen=True)
class RMS:
    """Root-mean-square normalisation, with a scale.

    Raises:
        ConfigError: an eps that is not positive.
    """

    eps: float = 1e-6  # added to the mean square

    def __post_init__(self) -> None:
        _check(self.eps)

    def build(self, size: int) -> RMSNorm:
        return RMSNorm(size, self.eps)


def _check(eps: float) -> None:
    if not eps > 0:
        raise ConfigError(f"eps of a norm must be positive, not {eps}")
