"""Mistral: a Llama whose attention sees a window of tokens.

Source: Jiang et al. 2023, arXiv 2310.06825.
"""

from dataclasses import dataclass

from flax import nnx

from jscale.models.attention import SelfAttention
from jscale.models.causal import Block
from jscale.models.dense import Dense
from jscale.models.layers import SwiGLU
from jscale.pallas_kernels.attention import Mask


@dataclass(frozen=True)
class Mistral(Dense):
    """The sizes of a Mistral.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    window: int | None = None  # tokens that are seen, one's own among them; None: all before

    def block(self, rngs: nnx.Rngs) -> Block:
        """One block, with random weights."""
        attend = SelfAttention(self.size, self.rotary, rngs, Mask(window=self.window))
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
