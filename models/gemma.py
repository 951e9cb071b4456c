"""Gemma 2 and 3: four norms a block, windows in turns with whole rows, capped scores.

Source: Gemma Team 2024, arXiv 2408.00118; 2025, arXiv 2503.19786.
"""

# B batch, T length, D model size, V vocabulary.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.activations import activate
from jscale.models.attention import SelfAttention
from jscale.models.causal import Causal
from jscale.models.decoder import Context
from jscale.models.dense import Mixed
from jscale.models.layers import RMSNorm, SwiGLU, gate_and_up, normalise, project
from jscale.models.qwen import NormedAttention
from jscale.models.rope import Rotation
from jscale.models.windows import Windows
from jscale.pallas_kernels.attention import Scores


@dataclass(frozen=True)
class Sharpness:
    """What keeps scores from growing.

    Raises:
        ConfigError: a number is not above 0.
    """

    query: int | None = None  # attention's scores are divided by its root; None: the head size
    attention: float | None = None  # attention's scores s become c · tanh(s / c); None: they stay
    final: float | None = None  # the same of the scores of tokens

    def __post_init__(self) -> None:
        for name in ("query", "attention", "final"):
            found = getattr(self, name)
            if found is not None and not found > 0:
                raise ConfigError(f"Sharpness.{name} must be above 0, not {found}")


@dataclass(frozen=True)
class Gemma2(Mixed):
    """The sizes of a Gemma 2.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    tied: bool = True  # whether embedding and head share one matrix
    biases: bool = False  # whether attention's projections add one
    windows: Windows = Windows(4096)  # which layers see a window, and how far
    sharpness: Sharpness = Sharpness(attention=50.0, final=30.0)  # what keeps scores from growing

    @property
    def of(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return self.windows.of(self.layers)

    def block(self, kind: str, rngs: nnx.Rngs) -> "Block":
        """One block of a kind, with random weights."""
        attend = SelfAttention(self.size, self.rotary, rngs, **self.options(kind))
        return Block(self, attend, GeGLU(self.dim, self.hidden, rngs))

    def options(self, kind: str) -> dict[str, Any]:
        """Of an attention layer: what it sees, its biases, and how it scores."""
        query = self.sharpness.query or self.head_size
        scores = Scores(query**-0.5, self.sharpness.attention)
        biases = "qkvo" * self.biases
        return {"mask": self.windows.mask(kind), "biases": biases, "scores": scores}

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "Network":
        return Network(self, self.kinds, rngs, compute)


@dataclass(frozen=True)
class Gemma3(Gemma2):
    """The sizes of a Gemma 3 that reads text.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    rope: float = 1_000_000.0  # base of the rotary frequencies
    windows: Windows = Windows(1024, ("local",) * 5 + ("global",), 10_000.0)  # which see a window
    sharpness: Sharpness = Sharpness()  # what keeps scores from growing

    def block(self, kind: str, rngs: nnx.Rngs) -> "Block":
        """One block of a kind, with random weights; of `rope` and `scaling` local ones have their
        own."""
        own = self.windows.rope if kind == "local" else None
        rotary = self.rotary if own is None else Rotation(own)
        attend = GemmaAttention(self.size, rotary, rngs, self.eps, **self.options(kind))
        return Block(self, attend, GeGLU(self.dim, self.hidden, rngs))


class UnitNorm(RMSNorm):
    """x / rms(x) · (1 + scale), in float32: the weight is how far the scale is from 1."""

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__(size, eps)
        self.scale[...] = jnp.zeros(size)

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return normalise(self.eps, x, 1 + self.scale[...].astype(jnp.float32))


class GemmaAttention(NormedAttention):
    """Attention whose queries and keys are normed, each head by itself."""

    norm = UnitNorm


class GeGLU(SwiGLU):
    """(gelu(x G) ⊙ x U) W, by the approximation with tanh. Source: Shazeer 2020, 2002.05202."""

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = gate_and_up(self.project(x))
        hidden = constrain(activate("gelu_tanh", gate) * up, "batch", "length", "mlp")
        return project("btf,fd->btd", hidden, self.down[...])


class Block(nnx.Module):
    """x + norm attend(norm x), then x + norm feed(norm x)."""

    def __init__(self, c: Gemma2, attend: nnx.Module, feed: nnx.Module):
        norm = lambda: UnitNorm(c.dim, c.eps)
        self.attend_norm, self.attend, self.attended_norm = norm(), attend, norm()
        self.feed_norm, self.feed, self.fed_norm = norm(), feed, norm()

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, state: Any
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Any]]:
        """The new hidden states, what is reported, and what becomes of the state."""
        with jax.named_scope("attend"):
            attended, state = self.attend(self.attend_norm(x), context, state)
            x = constrain(x + self.attended_norm(attended), "batch", "length", "embed")
        with jax.named_scope("feed"):
            fed = self.fed_norm(self.feed(self.feed_norm(x)))
            x = constrain(x + fed, "batch", "length", "embed")
        return x, ({}, state)


class Network(Causal):
    """Embedding times √D, blocks, norm, head, scores of tokens capped."""

    def __init__(self, c: Gemma2, blocks: Any, rngs: nnx.Rngs, compute: DTypeLike):
        super().__init__(c, blocks, rngs, compute)
        self.norm = UnitNorm(c.dim, c.eps)

    def through(self, x: Float[Array, "B T D"], context: Context, cache: Any) -> Any:
        """Hidden states after all blocks, what these report, and the new cache."""
        return super().through(x * jnp.asarray(self.c.dim**0.5, x.dtype), context, cache)

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The scores of all tokens."""
        scores, cap = super().unembed(hidden), self.c.sharpness.final
        if cap is None:
            return scores
        return (cap * jnp.tanh(scores.astype(jnp.float32) / cap)).astype(scores.dtype)

    def logprobs(
        self,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"] | None = None,
        z_loss: float = 0.0,
        smoothing: float = 0.0,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """As `Scoring` says."""
        more = weights, z_loss, smoothing, self.c.sharpness.final
        return super().logprobs(hidden, targets, *more)
