"""Qwen 3 with experts: a Qwen 3 with 128 small experts in most layers, eight for each token.

Source: Yang et al. 2025, arXiv 2505.09388.
"""

from dataclasses import dataclass

from flax import nnx

from jscale.errors import ConfigError
from jscale.models.causal import Block
from jscale.models.dense import Mixed
from jscale.models.gates import TopK
from jscale.models.layers import SwiGLU
from jscale.models.qwen import NormedAttention
from jscale.models.sparse import Experts, SparseBlock


@dataclass(frozen=True)
class Qwen3MoE(Mixed):
    """The sizes of a Qwen 3 with experts; `hidden` is that of layers without.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy, or a
            dense layer that is none.
    """

    biases: bool = False  # whether attention's projections add one
    experts: Experts = Experts(128, TopK(8))  # of every layer that is not dense
    dense: tuple[int, ...] = ()  # layers without experts, from 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := set(self.dense) - set(range(self.layers)):
            raise ConfigError(f"dense: there is no layer {min(wrong)}, of {self.layers} from 0")

    @property
    def of(self) -> tuple[str, ...]:
        """Dense layers and sparse ones."""
        return tuple("dense" if i in self.dense else "sparse" for i in range(self.layers))

    def block(self, kind: str, rngs: nnx.Rngs) -> Block:
        """One block, dense or sparse, with random weights."""
        biases = "qkvo" * self.biases
        attend = NormedAttention(self.size, self.rotary, rngs, self.eps, biases=biases)
        if kind == "dense":
            return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))
