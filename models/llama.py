"""Llama: pre-norm blocks of grouped-query attention and SwiGLU.

Source: Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; Grattafiori et al. 2024, 2407.21783.
"""

from dataclasses import dataclass

from flax import nnx

from jscale.models.attention import SelfAttention
from jscale.models.causal import Block
from jscale.models.dense import Dense
from jscale.models.layers import SwiGLU


@dataclass(frozen=True)
class Llama(Dense):
    """The sizes of a Llama.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    biases: bool = False  # whether attention's projections add one

    def block(self, rngs: nnx.Rngs) -> Block:
        """One block, with random weights."""
        attend = SelfAttention(self.size, self.rotary, rngs, biases="qkvo" * self.biases)
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
