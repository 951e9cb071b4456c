"""Llama: pre-norm blocks of grouped-query attention and SwiGLU.

Source: Touvron et al. 2023, arXiv 2302.13971 and 2307.09288.
"""

# B batch, T length, D model size, V vocabulary.

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import Chosen, constrain
from jscale.models.attention import Heads, SelfAttention
from jscale.models.decoder import Context, KeysValues, Output, context_of
from jscale.models.layers import Embed, RMSNorm, Stack, SwiGLU, Unembed, check_remat
from jscale.models.sequence import Order, exchange_of
from jscale.pallas_kernels.attention import CAUSAL


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # query heads
    kv_heads: int  # key/value heads, each shared by heads / kv_heads query heads
    hidden: int  # size inside SwiGLU
    head: int | None = None  # size of one head; None: dim / heads
    rope: float = 10_000.0  # base of the rotary frequencies
    eps: float = 1e-6  # of the norms
    tied: bool = False  # whether embedding and head share one matrix
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "layers", "heads", "kv_heads", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head is None and self.dim % self.heads:
            raise ConfigError(
                f"dim={self.dim} must be a multiple of heads={self.heads}, or give head its size"
            )
        if self.head_size % 2:
            raise ConfigError(f"the head size must be even for rotation, not {self.head_size}")
        check_remat(self.remat)

    @classmethod
    def of_depth(cls, layers: int, vocab: int, **changes: Any) -> "Llama":
        """One dial: 64 · layers wide, heads of 64, SwiGLU 8/3 as wide, rounded to 64."""
        dim = 64 * layers
        hidden = -(-8 * dim // 3 // 64) * 64
        sizes = dict(vocab=vocab, dim=dim, layers=layers, heads=layers, kv_heads=layers)
        return cls(**{**sizes, "hidden": hidden, **changes})

    @property
    def head_size(self) -> int:
        return self.head if self.head is not None else self.dim // self.heads

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "Network":
        return Network(self, rngs, compute)


class Block(nnx.Module):
    """x + attend(norm x), then x + feed(norm x)."""

    def __init__(self, c: Llama, rngs: nnx.Rngs):
        size = Heads(c.dim, c.heads, c.kv_heads, c.head_size)
        self.attend_norm, self.attend = RMSNorm(c.dim, c.eps), SelfAttention(size, c.rope, rngs)
        self.feed_norm, self.feed = RMSNorm(c.dim, c.eps), SwiGLU(c.dim, c.hidden, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysValues | None
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], KeysValues | None]]:
        with jax.named_scope("attend"):
            attended, cache = self.attend(self.attend_norm(x), context, cache)
            x = constrain(x + attended, "batch", "length", "embed")
        with jax.named_scope("feed"):
            x = constrain(x + self.feed(self.feed_norm(x)), "batch", "length", "embed")
        return x, ({}, cache)


class Network(nnx.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, c: Llama, rngs: nnx.Rngs, compute: DTypeLike):
        self.c = c
        self.embed = Embed(c.vocab, c.dim, rngs, compute)
        self.blocks = Stack(lambda rngs: Block(c, rngs), c.layers, rngs, c.remat)
        self.norm = RMSNorm(c.dim, c.eps)
        self.head = None if c.tied else Unembed(c.vocab, c.dim, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: KeysValues | None = None,
    ) -> Output:
        chosen = self.exchange(tokens.shape[1]) if cache is None else None
        order = Order.under(CAUSAL, tokens.shape[1], chosen)
        tokens, context = order.apply(tokens, context_of(tokens, positions, segments))
        x, (reports, cache) = self.blocks(self.embed(tokens), context, cache)
        return Output(order.undo(self.norm(x)), reports, cache)

    def exchange(self, length: int) -> Chosen | None:
        """What attention exchanges under the current layout; None where devices have whole rows."""
        return exchange_of(length, self.c.heads, self.c.kv_heads)

    @jax.named_scope("unembed")
    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self.embed.unembed(hidden) if self.head is None else self.head(hidden)

    @jax.named_scope("unembed")
    def logprobs(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """As `Scoring` says."""
        return (self.head or self.embed).logprobs(hidden, targets, *more)

    def cache(self, batch: int, length: int) -> KeysValues:
        """An empty cache for `length` positions."""
        shape = (batch, length, self.c.kv_heads, self.c.head_size)
        return KeysValues.empty(self.c.layers, shape, self.embed.compute)
