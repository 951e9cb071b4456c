"""Llama 4, its text part: chunks in turns with whole rows without positions, experts in turns.

Source: Meta AI 2025, The Llama 4 herd; the released code. Layers without positions: Kazemnejad et
al. 2023, arXiv 2305.19466; sharper scores in long rows: Nakanishi 2025, arXiv 2501.19399.
"""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.models.attention import SelfAttention
from jscale.models.causal import Block
from jscale.models.decoder import Context
from jscale.models.dense import Mixed
from jscale.models.gates import TopK
from jscale.models.layers import SwiGLU, normalise
from jscale.models.sparse import Experts, Shared, SparseBlock
from jscale.models.windows import KINDS
from jscale.pallas_kernels.attention import CAUSAL, Mask

FEEDS = ("dense", "sparse")


@dataclass(frozen=True)
class Sharper:
    """Queries at position p are multiplied by 1 + rate · log(1 + ⌊(p + 1) / every⌋).

    Raises:
        ConfigError: fewer than one token.
    """

    rate: float = 0.1  # how much
    every: int = 8192  # tokens after which they are sharpened once more

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"Sharper.every must be at least 1 token, not {self.every}")

    def __call__(
        self, q: Float[Array, "B T N H"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        runs = jnp.floor((positions.astype(jnp.float32) + 1) / self.every)
        scale = 1 + self.rate * jnp.log1p(runs)
        return (q.astype(jnp.float32) * scale[..., None, None]).astype(q.dtype)


@dataclass(frozen=True)
class Chunks:
    """How attention is in local layers, which rotate, and in global ones, which do not.

    Raises:
        ConfigError: a chunk below 1, no turns, or a kind of layer that is neither.
    """

    size: int = 8192  # a token of a local layer sees those before it in its chunk of so many
    turns: tuple[str, ...] = ("local", "local", "local", "global")  # kinds of layers, in turns
    normed: bool = True  # whether queries and keys of local layers are divided by their size
    sharper: Sharper | None = Sharper()  # what global layers do in long rows; None: nothing
    biases: bool = False  # whether attention's projections add one

    def __post_init__(self) -> None:
        Mask(chunk=self.size)
        _check_turns("Chunks.turns", self.turns, KINDS)


def _check_turns(name: str, turns: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    """Raises ConfigError unless turns are some of these kinds."""
    if not turns:
        raise ConfigError(f"{name} must name one kind of layer at least: {' or '.join(kinds)}")
    for kind in turns:
        if kind not in kinds:
            raise ConfigError(f"no kind of layer {kind!r} in {name}; {did_you_mean(kind, kinds)}")


@dataclass(frozen=True)
class Llama4(Mixed):
    """The sizes of the text part of a Llama 4; `hidden` is that of dense layers.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    rope: float = 500_000.0  # base of the rotary frequencies, of local layers
    eps: float = 1e-5  # of the norms
    chunks: Chunks = Chunks()  # how attention is, by kinds of layers
    feeds: tuple[str, ...] = ("sparse",)  # "dense" and "sparse" layers, in turns
    experts: Experts = Experts(  # of sparse layers
        16, TopK(1, "sigmoid", normalise=False), 8192, Shared(8192), weighs="inputs"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_turns("feeds", self.feeds, FEEDS)

    @property
    def of(self) -> tuple[tuple[str, str], ...]:
        """The kind of each layer: how it attends, and what feeds it."""
        turn = lambda kinds, layer: kinds[layer % len(kinds)]
        return tuple(
            (turn(self.chunks.turns, layer), turn(self.feeds, layer))
            for layer in range(self.layers)
        )

    def block(self, kind: tuple[str, str], rngs: nnx.Rngs) -> Block:
        """One block of a kind, with random weights."""
        attends, feeds = kind
        attend = (Local if attends == "local" else Global)(self, rngs)
        if feeds == "dense":
            return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))


class Local(SelfAttention):
    """Attention within chunks; queries and keys are rotated, then divided by their root mean
    square."""

    def __init__(self, c: Llama4, rngs: nnx.Rngs):
        mask, biases = Mask(chunk=c.chunks.size), "qkvo" * c.chunks.biases
        super().__init__(c.size, c.rotary, rngs, mask, biases)
        self.eps = c.eps if c.chunks.normed else None

    def turn(self, q: Any, k: Any, positions: Int[Array, "B T"]) -> Any:
        """Queries and keys as they meet."""
        q, k = super().turn(q, k, positions)
        if self.eps is None:
            return q, k
        ones = jnp.ones(q.shape[-1], jnp.float32)
        return normalise(self.eps, q, ones), normalise(self.eps, k, ones)

    def places(self, context: Context) -> Int[Array, "B T"] | None:
        """Chunks are of positions, which begin anew with each text of a row."""
        plain = context.segments is None and context.places is None
        return None if plain else context.positions


class Global(SelfAttention):
    """Attention to all that comes before, without positions."""

    def __init__(self, c: Llama4, rngs: nnx.Rngs):
        super().__init__(c.size, c.rotary, rngs, CAUSAL, "qkvo" * c.chunks.biases)
        self.sharper = c.chunks.sharper

    def turn(self, q: Any, k: Any, positions: Int[Array, "B T"]) -> Any:
        """Queries, sharper the later they are, and keys."""
        return (q if self.sharper is None else self.sharper(q, positions)), k
