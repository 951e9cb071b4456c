"""OLMoE: 64 small experts in every layer, eight for each token, and norms of queries and keys.

Source: Muennighoff et al. 2024, arXiv 2409.02060.
"""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.models.dense import Dense
from jscale.models.gates import Balance, TopK
from jscale.models.olmo import OlmoAttention
from jscale.models.sparse import Experts, SparseBlock


@dataclass(frozen=True)
class OLMoE(Dense):
    """The sizes of an OLMoE; `hidden` is that of each expert.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy, or a
            bound that is not above 0.
    """

    biases: bool = False  # whether attention's projections add one
    clip: float | None = None  # bound of queries, keys and values, on both sides; None: none
    # Of every layer.
    experts: Experts = Experts(64, TopK(8, normalise=False), balance=Balance(0.01))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be above 0, not {self.clip}")

    def block(self, rngs: nnx.Rngs) -> SparseBlock:
        """One block, with random weights."""
        biases = "qkvo" * self.biases
        attend = ClippedAttention(self.size, self.rotary, rngs, self.eps, biases=biases)
        attend.clip = self.clip
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))


class ClippedAttention(OlmoAttention):
    """OLMo's attention, of queries, keys and values within a bound."""

    clip: float | None = None

    def project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values."""
        q, k, v = super().project(x)
        if self.clip is None:
            return q, k, v
        q, k, v = (jnp.clip(y, -self.clip, self.clip) for y in (q, k, v))
        return q, k, v
