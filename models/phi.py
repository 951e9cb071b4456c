"""Phi-3: a Llama that may turn a part of each head and see a window.

Source: Abdin et al. 2024, arXiv 2404.14219.
"""

from dataclasses import dataclass

from flax import nnx

from jscale.models.attention import SelfAttention
from jscale.models.causal import Block
from jscale.models.dense import Dense
from jscale.models.layers import SwiGLU
from jscale.models.rope import Rotation, check_turned
from jscale.pallas_kernels.attention import Mask


@dataclass(frozen=True)
class Phi3(Dense):
    """The sizes of a Phi-3 or a Phi-4-mini.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    eps: float = 1e-5  # of the norms
    window: int | None = None  # tokens that are seen, one's own among them; None: all before
    turned: int | None = None  # so many first numbers of a head are rotated; None: all

    def __post_init__(self) -> None:
        super().__post_init__()
        check_turned(self.turned, self.head_size)

    @property
    def rotary(self) -> Rotation:
        """How queries and keys are rotated."""
        return Rotation(self.rope, self.scaling, self.turned)

    def block(self, rngs: nnx.Rngs) -> Block:
        """One block, with random weights."""
        attend = SelfAttention(self.size, self.rotary, rngs, Mask(window=self.window))
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
