"""Mixtral: a Mistral whose feed-forward is eight experts, of which each token uses two.

Source: Jiang et al. 2024, arXiv 2401.04088.
"""

from dataclasses import dataclass

from flax import nnx

from jscale.models.attention import SelfAttention
from jscale.models.dense import Dense
from jscale.models.sparse import Experts, SparseBlock
from jscale.pallas_kernels.attention import Mask


@dataclass(frozen=True)
class Mixtral(Dense):
    """The sizes of a Mixtral; `hidden` is that of each expert.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    rope: float = 1_000_000.0  # base of the rotary frequencies
    window: int | None = None  # tokens that are seen, one's own among them; None: all before
    experts: Experts = Experts(8)  # of every layer

    def block(self, rngs: nnx.Rngs) -> SparseBlock:
        """One block, with random weights."""
        attend = SelfAttention(self.size, self.rotary, rngs, Mask(window=self.window))
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))
