"""How well each expert fits a token: scores, in float32 whatever the network computes in."""

# D model size, R size in which tokens and experts are compared, E experts.

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.errors import ConfigError, did_you_mean
from jscale.models.initial import Fans, Scheme, named


@runtime_checkable
class Scores(Protocol):
    """A choice of scores. What `build` makes maps tokens [B, T, D] to scores [B, T, E]."""

    def build(self, dim: int, experts: int, rngs: nnx.Rngs, scheme: Scheme) -> nnx.Module: ...


@dataclass(frozen=True)
class LinearRouter:
    """x W, or x W + b."""

    bias: bool = False  # whether it adds one

    def build(self, dim: int, experts: int, rngs: nnx.Rngs, scheme: Scheme) -> "PlainScores":
        return PlainScores(dim, experts, rngs, scheme, self.bias)


class PlainScores(nnx.Module):
    """What `LinearRouter` builds."""

    def __init__(self, dim: int, experts: int, rngs: nnx.Rngs, scheme: Scheme, bias: bool = False):
        fans = Fans(dim, experts)
        self.kernel = named(scheme.matrix(rngs.params(), (dim, experts), fans), "embed", "experts")
        first = scheme.bias(rngs.params(), (experts,), fans) if bias else None
        self.bias = None if first is None else named(first, "scale")

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        y = _product(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


VARIANTS = ("paper", "torchscale")
NORM = 1.5  # of an expert's vector in TorchScale
LEAST = 1e-4  # norm by which is divided, and temperature
TEMPERATURE = 0.3  # at the start


@dataclass(frozen=True)
class CosineRouter:
    """The angle between a token, brought to few dimensions, and a vector of each expert.

    "paper" divides the cosine by a learned temperature. "torchscale" leaves the token as long as it
    is and has no temperature; its gradient of an expert's vector is that at norm 1.5, to which the
    original rescales it whenever it is used. Source: Chi et al. 2022, X-MoE, arXiv 2204.09179.

    Raises:
        ConfigError: an unknown variant, or a size below 1.
    """

    variant: str = "paper"  # paper, torchscale
    size: int = 16  # dimensions in which tokens and experts are compared

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            hint = did_you_mean(self.variant, VARIANTS)
            raise ConfigError(f"no variant {self.variant!r} of cosine scores; {hint}")
        if self.size < 1:
            raise ConfigError(f"CosineRouter.size must be at least 1, not {self.size}")

    def build(self, dim: int, experts: int, rngs: nnx.Rngs, scheme: Scheme) -> "CosineScores":
        return CosineScores(self, (dim, experts), rngs, scheme)


class CosineScores(nnx.Module):
    """What `CosineRouter` builds."""

    def __init__(self, c: CosineRouter, sizes: tuple[int, int], rngs: nnx.Rngs, scheme: Scheme):
        dim, experts = sizes
        self.learned = c.variant == "paper"
        first = scheme.matrix(rngs.params(), (dim, c.size), Fans(dim, c.size))
        self.reduce = named(first, "embed", "head")
        wide = (max(c.size, experts), min(c.size, experts))
        rows = jax.nn.initializers.orthogonal()(rngs.params(), wide)
        rows = rows if experts <= c.size else rows.T
        rows = NORM * rows / jnp.linalg.norm(rows, axis=0)
        self.vectors = named(rows, "head", "experts")
        start = named(jnp.full((1,), TEMPERATURE), "scale") if self.learned else None
        self.temperature = start

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        vectors = self.vectors[...].astype(jnp.float32)
        token = _product(x, self.reduce[...])
        if self.temperature is None:
            return token @ _unit(_rescaled(vectors), 0)
        heat = jnp.maximum(self.temperature[...].astype(jnp.float32), LEAST)
        return _unit(token, -1) @ _unit(vectors, 0) / heat


def _product(x: Float[Array, "B T D"], w: Float[Array, "D R"]) -> Float[Array, "B T R"]:
    """x w in float32: rounded scores would change who is chosen."""
    return jnp.einsum("btd,dr->btr", x.astype(jnp.float32), w.astype(jnp.float32))


def _unit(x: Float[Array, "*B R"], axis: int) -> Float[Array, "*B R"]:
    """Vectors of length 1; those shorter than 1e-4 divided by that."""
    square = jnp.square(x).sum(axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, LEAST**2))


def _rescaled(vectors: Float[Array, "R E"]) -> Float[Array, "R E"]:
    """Vectors of norm 1.5, with the gradient handed on as if they were the weights themselves."""
    norm = jnp.maximum(jnp.linalg.norm(jax.lax.stop_gradient(vectors), axis=0), LEAST)
    return vectors + jax.lax.stop_gradient(vectors * (NORM / norm - 1))
