"""Scores of tokens from hidden states: by a matrix of their own or by the embedding's."""

# B batch, T length, D model size, V vocabulary.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models import decoder
from jscale.models.activations import activate, check_activation
from jscale.models.feed import Linear
from jscale.models.initial import Scheme, named, table
from jscale.models.layers import Embed, logprobs, project
from jscale.models.norms import Norm

Pair = tuple[Float[Array, "B T"], Float[Array, "B T"]]


@dataclass(frozen=True)
class Plain:
    """Scores by one matrix, without a bias."""

    tied: bool = False  # whether the matrix is the embedding's

    def build(self, vocab: int, dim: int, rngs: nnx.Rngs, style: tuple[Scheme, Norm]) -> "Scored":
        return Scored(None if self.tied else matrix(vocab, dim, rngs, style[0]))


@dataclass(frozen=True)
class Masked:
    """BERT's: a layer of its own, an activation, a norm; then a matrix and a bias.

    Raises:
        ConfigError: an unknown activation.
    """

    tied: bool = True  # whether the matrix is the embedding's
    activation: str = "gelu"  # by name: models/activations.py

    def __post_init__(self) -> None:
        check_activation(self.activation)

    def build(self, vocab: int, dim: int, rngs: nnx.Rngs, style: tuple[Scheme, Norm]) -> "Scored":
        scheme, norm = style
        before = Transform(self.activation, dim, rngs, scheme, norm)
        kernel = None if self.tied else matrix(vocab, dim, rngs, scheme)
        return Scored(kernel, before, named(jnp.zeros(vocab), "vocab"))


Head = Plain | Masked


class Headed:
    """The scores of a network that may have a head."""

    embed: Embed
    head: Any  # Scored, or None

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The scores of all tokens.

        Raises:
            ConfigError: the network has no head.
        """
        return self._head().unembed(self.embed, hidden)

    def logprobs(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> Pair:
        """As `Scoring` says; raises as `unembed`."""
        return self._head().logprobs(self.embed, hidden, targets, *more)

    def _head(self) -> Any:
        if self.head is None:
            raise ConfigError("this network has no head and scores no tokens: head=Plain()")
        return self.head


def matrix(vocab: int, dim: int, rngs: nnx.Rngs, scheme: Scheme) -> nnx.Param:
    """An output matrix."""
    return table(rngs, scheme.head, dim, embed=dim, vocab=vocab)


class Transform(nnx.Module):
    """norm(f(x W + b)), before the scores of `Masked`."""

    def __init__(self, activation: str, dim: int, rngs: nnx.Rngs, scheme: Scheme, norm: Norm):
        self.activation = activation
        self.dense = Linear(dict(embed=dim, mlp=dim), rngs, scheme, 1.0)
        self.norm = norm.build(dim)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.norm(activate(self.activation, self.dense(x)))


class Scored(nnx.Module):
    """What heads build. `embed` is the embedding whose vectors score where there is no matrix."""

    def __init__(
        self,
        kernel: nnx.Param | None,
        before: Transform | None = None,
        bias: nnx.Param | None = None,
    ):
        self.kernel, self.before, self.bias = kernel, before, bias

    def _matrix(self, embed: Embed) -> Float[Array, "D V"]:
        return embed.table[...].T if self.kernel is None else self.kernel[...]

    @jax.named_scope("unembed")
    def unembed(self, embed: Embed, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The scores of all tokens."""
        x = x if self.before is None else self.before(x)
        y = project("btd,dv->btv", x, self._matrix(embed))
        y = y if self.bias is None else y + self.bias[...].astype(y.dtype)
        return constrain(y, "batch", "length", "vocab")

    @jax.named_scope("unembed")
    def logprobs(
        self,
        embed: Embed,
        x: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"] | None = None,
        z_loss: float = 0.0,
        smoothing: float = 0.0,
    ) -> Pair:
        """The log-probability of each target, and log Σ exp of all scores (`Scoring`)."""
        if self.bias is None:
            x = x if self.before is None else self.before(x)
            return logprobs(x, self._matrix(embed), targets, weights, z_loss, smoothing)
        return decoder.logprobs(self.unembed(embed, x), targets, smoothing)
