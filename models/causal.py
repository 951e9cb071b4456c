"""What causal language models have in common: sizes, blocks, embedding, head, order of tokens."""

# B batch, T length, D model size, V vocabulary.

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import Chosen, constrain
from jscale.models.decoder import Context, KeysValues, Output, context_of
from jscale.models.draws import Drawing
from jscale.models.feed import apart
from jscale.models.kinds import Kinds
from jscale.models.layers import Embed, RMSNorm, Stack, Unembed, check_remat
from jscale.models.sequence import Order, exchange_of
from jscale.pallas_kernels.attention import CAUSAL


@runtime_checkable
class Sizes(Protocol):
    """What the config of a causal language model tells."""

    @property
    def vocab(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...

    @property
    def eps(self) -> float: ...

    @property
    def tied(self) -> bool: ...

    @property
    def remat(self) -> str: ...

    @property
    def head_size(self) -> int: ...


def check_sizes(c: Any, *names: str) -> None:
    """That sizes are 1 or more, that heads group and can be rotated, and the policy is one.

    `names` are those of the sizes that not every model has.

    Raises:
        ConfigError: one is not as it must be.
    """
    for name in ("vocab", "dim", "layers", "heads", "kv_heads", *names):
        if getattr(c, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(c, name)}")
    if c.heads % c.kv_heads:
        raise ConfigError(f"heads={c.heads} must be a multiple of kv_heads={c.kv_heads}")
    if c.head_size % 2:
        raise ConfigError(f"the head size must be even for rotation, not {c.head_size}")
    check_remat(c.remat)


def share(dim: int, heads: int, head: int | None) -> int:
    """The size of a head: `head`, or an equal share of `dim`.

    Raises:
        ConfigError: `dim` cannot be shared equally.
    """
    if head is None and dim % heads:
        raise ConfigError(f"dim={dim} must be a multiple of heads={heads}, or give head its size")
    return dim // heads if head is None else head


class Block(nnx.Module):
    """x + attend(norm x), then x + feed(norm x)."""

    def __init__(self, c: Sizes, attend: nnx.Module, feed: nnx.Module):
        self.attend_norm, self.attend = RMSNorm(c.dim, c.eps), attend
        self.feed_norm, self.feed = RMSNorm(c.dim, c.eps), feed

    def __call__(
        self, x: Float[Array, "B T D"], context: Any, state: Any
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Any]]:
        """The new hidden states, what is reported, and what becomes of the state."""
        with jax.named_scope("attend"):
            attended, state = self.attend(self.attend_norm(x), context, state)
            x = constrain(x + attended, "batch", "length", "embed")
        with jax.named_scope("feed"):
            fed, reports = self.fed(self.feed_norm(x), context)
            x = constrain(x + fed, "batch", "length", "embed")
        return x, (reports, state)

    def fed(
        self, x: Float[Array, "B T D"], context: Any
    ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        """What the feed-forward makes of the normed x, and what it reports."""
        return self.feed(x), {}


class Causal(Drawing):
    """Embedding, blocks, norm, head.

    Blocks that are not all alike are told as `Kinds`. A model that has others besides has fewer
    `layers` of those: it says how it goes `through` them.
    """

    def __init__(
        self,
        c: Sizes,
        block: Callable[[nnx.Rngs], nnx.Module] | Kinds,
        rngs: nnx.Rngs,
        compute: DTypeLike,
        layers: int | None = None,
    ):
        self.c: Any = c
        self.embed = Embed(c.vocab, c.dim, rngs, compute)
        if isinstance(block, Kinds):
            self.blocks = block.build(rngs, c.remat)
        else:
            self.blocks = Stack(block, layers or c.layers, rngs, c.remat)
        self.norm = RMSNorm(c.dim, c.eps)
        self.head = None if c.tied else Unembed(c.vocab, c.dim, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Any = None,
    ) -> Output:
        chosen = self.exchange(tokens.shape[1]) if cache is None else None
        order = Order.under(CAUSAL, tokens.shape[1], chosen)
        tokens, context = order.apply(tokens, context_of(tokens, positions, segments, self.key))
        x, (reports, cache) = self.through(self.embed(tokens), context, cache)
        told = apart(reports)
        return Output(order.undo(self.norm(x)), told.reports, cache, told.penalty, told.loads)

    def through(
        self, x: Float[Array, "B T D"], context: Context, cache: Any
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Any]]:
        """Hidden states after all blocks, what these report, and the new cache."""
        return self.blocks(x, context, cache)

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

    def cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` positions."""
        shape = (batch, length, self.c.kv_heads, self.c.head_size)
        return KeysValues.empty(self.c.layers, shape, self.embed.compute)
