"""What the configs of dense decoders have in common: sizes, rotation, kinds of blocks."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from flax import nnx
from jax.typing import DTypeLike

from jscale.models.attention import Heads
from jscale.models.causal import Block, Causal, check_sizes, share
from jscale.models.kinds import Kinds
from jscale.models.rope import Rotation
from jscale.models.rope_scaling import RopeScaling

Family = TypeVar("Family", bound="Sized")


@dataclass(frozen=True)
class Sized:
    """The sizes of a decoder with rotary positions.

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
    scaling: RopeScaling | None = None  # how rotary frequencies are stretched for longer rows
    longest: int = 4096  # tokens of a row that others are told it is made for

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "longest")

    @classmethod
    def of_depth(cls: type[Family], layers: int, vocab: int, **changes: Any) -> Family:
        """One dial: 64 · layers wide, heads of 64, SwiGLU 8/3 as wide, rounded to 64."""
        dim = 64 * layers
        hidden = -(-8 * dim // 3 // 64) * 64
        sizes = dict(vocab=vocab, dim=dim, layers=layers, heads=layers, kv_heads=layers)
        return cls(**{**sizes, "hidden": hidden, **changes})

    @property
    def head_size(self) -> int:
        return share(self.dim, self.heads, self.head)

    @property
    def size(self) -> Heads:
        return Heads(self.dim, self.heads, self.kv_heads, self.head_size)

    @property
    def rotary(self) -> Rotation:
        return Rotation(self.rope, self.scaling)


@dataclass(frozen=True)
class Dense(Sized, ABC):
    """A decoder whose layers are all alike; a family says what its `block` is."""

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> Causal:
        return Causal(self, self.block, rngs, compute)

    @abstractmethod
    def block(self, rngs: nnx.Rngs) -> Block:
        """One block, with random weights."""


@dataclass(frozen=True)
class Mixed(Sized, ABC):
    """A decoder with layers of several kinds; a family says which, and what a block of each is."""

    @property
    @abstractmethod
    def of(self) -> tuple[Hashable, ...]:
        """The kind of each layer."""

    @abstractmethod
    def block(self, kind: Any, rngs: nnx.Rngs) -> nnx.Module:
        """One block of a kind, with random weights."""

    @property
    def kinds(self) -> Kinds:
        """The kinds of the layers, and how their blocks are made."""
        return Kinds(self.of, self.block)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> Causal:
        return Causal(self, self.kinds, rngs, compute)
