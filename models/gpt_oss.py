"""gpt-oss: attention with sinks, every second layer in a window, and experts with bounded gates.

Source: OpenAI 2025, arXiv 2508.10925.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jscale.models.attention import Heads, SelfAttention
from jscale.models.dense import Mixed
from jscale.models.feed import Clamp
from jscale.models.gates import TopK
from jscale.models.layers import constant
from jscale.models.rope import Rotation
from jscale.models.sparse import Experts, SparseBlock
from jscale.models.windows import Windows
from jscale.pallas_kernels.attention import Scores

EXPERTS = Experts(32, TopK(4, "softmax_of_chosen"), biases=True, clamp=Clamp())


@dataclass(frozen=True)
class GptOss(Mixed):
    """The sizes of a gpt-oss; `hidden` is that of each expert.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    rope: float = 150_000.0  # base of the rotary frequencies
    eps: float = 1e-5  # of the norms
    biases: bool = True  # whether attention's projections add one
    windows: Windows = Windows(128)  # which layers see a window, and how far
    experts: Experts = EXPERTS  # of every layer

    @property
    def of(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return self.windows.of(self.layers)

    def block(self, kind: str, rngs: nnx.Rngs) -> SparseBlock:
        """One block of a kind, with random weights."""
        own = self.windows.rope if kind == "local" else None
        rotary = self.rotary if own is None else Rotation(own)
        options = {"mask": self.windows.mask(kind), "biases": "qkvo" * self.biases}
        attend = SinkAttention(self.size, rotary, rngs, **options)
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))


class SinkAttention(SelfAttention):
    """Attention in which each head may also look at nothing: at a key of value 0."""

    def __init__(self, size: Heads, rotary: Rotation, rngs: nnx.Rngs, **more: Any):
        super().__init__(size, rotary, rngs, **more)
        self.sinks = constant(0.0, heads=size.heads)

    def scoring(self) -> Scores:
        """How queries and keys score, and what the keys of value 0 do."""
        return replace(self.scores, sinks=self.sinks[...].astype(jnp.float32))
