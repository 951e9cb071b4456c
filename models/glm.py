"""GLM-4.5: grouped queries that are rotated in part, and DeepSeek-V3's way with experts.

Source: GLM-4.5 Team 2025, arXiv 2508.06471.
"""

from dataclasses import dataclass

from flax import nnx
from jax.typing import DTypeLike

from jscale.models.attention import SelfAttention
from jscale.models.causal import Block
from jscale.models.dense import Mixed
from jscale.models.foresight import Foresight, check_layers
from jscale.models.gates import TopK
from jscale.models.layers import SwiGLU
from jscale.models.qwen import NormedAttention
from jscale.models.rope import Rotation, check_turned
from jscale.models.sparse import Experts, Shared, SparseBlock

CHOICE = TopK(8, "sigmoid", scale=2.5, corrected=True)


@dataclass(frozen=True)
class GLM4MoE(Mixed):
    """The sizes of a GLM-4.5; `hidden` is that of layers without experts.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, more dense layers than
            layers, an unknown policy.
    """

    experts: Experts = Experts(160, CHOICE, 1536, Shared(1536))  # of layers that are not dense
    dense: int = 1  # first layers without experts
    ahead: int = 0  # further tokens that are predicted (`FurtherTokens` is the loss for them)
    turned: int | None = None  # so many first numbers of a head are rotated; None: all
    normed: bool = False  # whether queries and keys are normed
    biases: bool = False  # whether projections to queries, keys and values add one

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers, self.dense, self.ahead)
        check_turned(self.turned, self.head_size)

    @property
    def of(self) -> tuple[str, ...]:
        """Dense layers, then sparse ones."""
        return ("dense",) * self.dense + ("sparse",) * (self.layers - self.dense)

    @property
    def rotary(self) -> Rotation:
        """How queries and keys are rotated."""
        return Rotation(self.rope, self.scaling, self.turned)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> Foresight:
        return Foresight(self, self.kinds, rngs, compute)

    def block(self, kind: str, rngs: nnx.Rngs) -> Block:
        """One block, dense or sparse, with random weights."""
        biases = "qkv" * self.biases
        if self.normed:
            attend = NormedAttention(self.size, self.rotary, rngs, self.eps, biases=biases)
        else:
            attend = SelfAttention(self.size, self.rotary, rngs, biases=biases)
        if kind == "dense":
            return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))
