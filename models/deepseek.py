"""DeepSeek V2 and V3: latent attention, and many small experts besides shared ones.

Source: DeepSeek-AI 2024, arXiv 2405.04434 and 2412.19437.
"""

# B batch, S cache length, C size of a latent, R rotated numbers of a key.

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jscale.errors import ConfigError
from jscale.models.causal import Block
from jscale.models.foresight import Foresight, check_layers
from jscale.models.kinds import Kinds
from jscale.models.latent import Latent, LatentAttention, Latents
from jscale.models.layers import SwiGLU, check_remat
from jscale.models.rope import Rotation
from jscale.models.rope_scaling import RopeScaling, YaRN
from jscale.models.sparse import Experts, SparseBlock
from jscale.pallas_kernels.attention import Scores


@dataclass(frozen=True)
class DeepSeekV2:
    """The sizes of a DeepSeek V2.

    Raises:
        ConfigError: a size below 1, more dense layers than layers, an unknown policy.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention
    hidden: int  # size inside the SwiGLU of dense layers
    experts: Experts  # of all other layers
    latent: Latent = Latent()  # the sizes of attention
    dense: int = 1  # first layers without experts
    rope: float = 10_000.0  # base of the rotary frequencies
    eps: float = 1e-6  # of the norms
    tied: bool = False  # whether embedding and head share one matrix
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots
    scaling: RopeScaling | None = None  # how rotary frequencies are stretched for longer rows
    sharpened: float = 0.0  # YaRN's mscale_all_dim: how much it sharpens the softmax; 0: not at all
    longest: int = 4096  # tokens of a row that others are told it is made for

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "layers", "heads", "hidden", "longest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_layers(self.layers, self.dense, self.ahead)
        check_remat(self.remat)
        if self.sharpened and not isinstance(self.scaling, YaRN):
            raise ConfigError("sharpened belongs to scaling=YaRN(…): without it, set it to 0")

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_size(self) -> int:
        return self.latent.head

    @property
    def ahead(self) -> int:
        """How many further tokens are predicted."""
        return 0

    @property
    def kinds(self) -> Kinds:
        """Dense layers, then those with experts."""
        of = ("dense",) * self.dense + ("sparse",) * (self.layers - self.dense)
        return Kinds(of, self.block)

    @property
    def scores(self) -> Scores:
        """The scale of the softmax: 1/√H, and under YaRN times (0.1 · sharpened · ln factor + 1)².

        As the released code has it.
        """
        factor = self.scaling.factor if isinstance(self.scaling, YaRN) else 1.0
        grown = 0.1 * self.sharpened * math.log(factor) + 1 if factor > 1 else 1.0
        return Scores(scale=grown**2 * self.head_size**-0.5)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "Network":
        return Network(self, self.kinds, rngs, compute)

    def block(self, kind: str, rngs: nnx.Rngs) -> Block:
        """One block, dense or sparse, with random weights."""
        rotary = Rotation(self.rope, self.scaling)
        attend = LatentAttention(self.latent, self.dim, self.heads, rotary, self.scores, rngs)
        if kind == "dense":
            return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))
        return SparseBlock(self, attend, self.experts.build(self.dim, self.hidden, rngs))


@dataclass(frozen=True)
class DeepSeekV3(DeepSeekV2):
    """The sizes of a DeepSeek V3, which may learn to predict several tokens at once.

    Raises:
        ConfigError: a size below 1, more dense layers than layers, an unknown policy.
    """

    ahead: int = 0  # further tokens that are predicted (`Ahead` is the loss that trains it)


class Network(Foresight):
    """What `DeepSeekV2` and `DeepSeekV3` build."""

    def cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` positions: latents and rotated keys."""
        c, compute = self.c.latent, self.embed.compute
        return Latents(jnp.zeros((self.c.layers, batch, length, c.kv + c.rotated), compute))
