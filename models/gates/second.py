"""Who the second expert of a token is, and whether it has one, as values."""

# S tokens of a group, E experts.

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@runtime_checkable
class Second(Protocol):
    """A policy for the second expert. Without uniforms nothing is left to chance."""

    def uniforms(self, tokens: int, experts: int) -> tuple[int, ...] | None: ...

    def ranked(self, scores: Array, uniforms: Array | None) -> Array: ...

    def wanted(self, weight: Array, uniforms: Array | None) -> Array: ...


@dataclass(frozen=True)
class Always:
    """The runner-up."""

    def uniforms(self, tokens: int, experts: int) -> None:
        """It draws nothing."""
        return None

    def ranked(self, scores: Float[Array, "S E"], uniforms: Array | None) -> Float[Array, "S E"]:
        """The scores by which it is found."""
        return scores

    def wanted(self, weight: Float[Array, " S"], uniforms: Array | None) -> Bool[Array, " S"]:
        """Whether the token wants it."""
        return jnp.ones(weight.shape, bool)


@dataclass(frozen=True)
class Sampled(Always):
    """One of the others, as often as its probability among them says (Gumbel's trick).

    In evaluation it is the runner-up.
    """

    def uniforms(self, tokens: int, experts: int) -> tuple[int, ...] | None:
        """A number for each score."""
        return tokens, experts

    def ranked(self, scores: Float[Array, "S E"], uniforms: Array | None) -> Float[Array, "S E"]:
        """The scores and Gumbel noise."""
        if uniforms is None:
            return scores
        some = jnp.clip(uniforms, jnp.finfo(jnp.float32).tiny, 1 - jnp.finfo(jnp.float32).eps)
        return scores - jnp.log(-jnp.log(some))


@dataclass(frozen=True)
class ByWeight(Always):
    """The runner-up, with probability min(1, 2 · its weight). In evaluation always."""

    def uniforms(self, tokens: int, experts: int) -> tuple[int, ...] | None:
        """A number for each token."""
        return (tokens,)

    def wanted(self, weight: Float[Array, " S"], uniforms: Array | None) -> Bool[Array, " S"]:
        """Whether twice the weight is more than what was drawn."""
        return jnp.ones(weight.shape, bool) if uniforms is None else 2 * weight > uniforms
