"""Qwen 2, 2.5 and 3: Llamas with biases of queries, keys and values, later with norms of heads.

Some layers may see a window.

Source: Yang et al. 2024, arXiv 2407.10671 and 2412.15115; Yang et al. 2025, arXiv 2505.09388.
"""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jscale.models.attention import Heads, SelfAttention
from jscale.models.causal import Block
from jscale.models.dense import Mixed
from jscale.models.layers import RMSNorm, SwiGLU
from jscale.models.rope import Rotation
from jscale.models.windows import Windows
from jscale.pallas_kernels.attention import CAUSAL, Mask


@dataclass(frozen=True)
class Qwen2(Mixed):
    """The sizes of a Qwen 2 or 2.5.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    windows: Windows | None = None  # which layers see a window, and how far; None: none

    @property
    def of(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return ("global",) * self.layers if self.windows is None else self.windows.of(self.layers)

    def mask(self, kind: str) -> Mask:
        """What attention of such a layer sees."""
        return CAUSAL if self.windows is None else self.windows.mask(kind)

    def turning(self, kind: str) -> Rotation:
        """How such a layer rotates."""
        own = self.windows.rope if self.windows is not None and kind == "local" else None
        return self.rotary if own is None else Rotation(own)

    def block(self, kind: str, rngs: nnx.Rngs) -> Block:
        """One block of a kind, with random weights."""
        attend = SelfAttention(self.size, self.turning(kind), rngs, self.mask(kind), "qkv")
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))


@dataclass(frozen=True)
class Qwen3(Qwen2):
    """The sizes of a dense Qwen 3.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    biases: bool = False  # whether attention's projections add one

    def block(self, kind: str, rngs: nnx.Rngs) -> Block:
        """One block of a kind, with random weights."""
        options = {"mask": self.mask(kind), "biases": "qkvo" * self.biases}
        attend = NormedAttention(self.size, self.turning(kind), rngs, self.eps, **options)
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))


class NormedAttention(SelfAttention):
    """Attention whose queries and keys are normed, each head by itself, before they are rotated."""

    norm: ClassVar[type[RMSNorm]] = RMSNorm

    def __init__(self, size: Heads, rotary: Rotation, rngs: nnx.Rngs, eps: float, **more: Any):
        super().__init__(size, rotary, rngs, **more)
        self.q_norm, self.k_norm = self.norm(size.head, eps), self.norm(size.head, eps)

    def project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values."""
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v
