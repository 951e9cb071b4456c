"""Blocks of causal language models whose feed-forward is experts, routed and shared ones.

Source: Jiang et al. 2024, Mixtral, arXiv 2401.04088; Dai et al. 2024, DeepSeekMoE, 2401.06066.
"""

# B batch, T length, D model size, F hidden size.

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.models.blockwise import Blockwise
from jscale.models.causal import Block
from jscale.models.decoder import Context
from jscale.models.dispatching import Dispatch
from jscale.models.feed import GLU, Clamp, Reports, Style
from jscale.models.gates import Balance, Choice, LinearRouter, Noise, TopK
from jscale.models.initial import Scheme
from jscale.models.layers import SwiGLU, project, weight
from jscale.models.moe import Mixture, MoE

STYLE = Style(scheme=Scheme(lecun=True), decodes=True)


@dataclass(frozen=True)
class Shared:
    """A feed-forward that every token uses besides its experts.

    Raises:
        ConfigError: a size below 1.
    """

    hidden: int  # size inside it; of several shared experts the sum
    gated: bool = False  # whether a sigmoid of x · g multiplies it (Qwen 2)

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ConfigError(f"Shared.hidden must be at least 1, not {self.hidden}")


@dataclass(frozen=True)
class Experts:
    """The experts of a network's layers, each a SwiGLU, and how a token finds its own.

    Raises:
        ConfigError: a size below 1, or a choice that these experts do not allow.
    """

    count: int  # how many
    choice: Choice = TopK(2)  # who is chosen, with what weight
    hidden: int | None = None  # size inside each; None: the `hidden` of the network
    shared: Shared | None = None  # what every token uses besides
    balance: Balance = Balance()  # how even use is asked for
    dispatch: Dispatch = Dispatch()  # how tokens get to experts that devices share
    weighs: str = "results"  # what a weight multiplies: results of an expert, or its inputs
    biases: bool = False  # whether the router and the routed experts add them
    clamp: Clamp | None = None  # how the gates and values of routed experts are bounded; None: not
    latent: int | None = None  # size to which tokens are brought for routed experts; None: not
    noise: Noise = Noise()  # of the router, in training
    precision: Blockwise | None = None  # of the products of routed experts; None: as elsewhere

    def __post_init__(self) -> None:
        self.routed(1)

    def routed(self, hidden: int) -> MoE:
        """The layer of routed experts in a network with this `hidden`."""
        inside = hidden if self.hidden is None else self.hidden
        return MoE(
            self.count,
            GLU(inside, bias=self.biases, clamp=self.clamp, precision=self.precision),
            LinearRouter(self.biases),
            self.choice,
            balance=self.balance,
            dispatch=self.dispatch,
            weighs=self.weighs,
            latent=self.latent,
            noise=self.noise,
        )

    def build(self, dim: int, hidden: int, rngs: nnx.Rngs) -> "SparseFeed":
        """The feed-forward layer of a network with these sizes."""
        return SparseFeed(self.routed(hidden), self.shared, dim, rngs)


class SparseFeed(nnx.Module):
    """Σ_e w_e expert_e(x), and shared(x), or sigmoid(x · g) shared(x).

    Its weights are `routed/router/kernel` [D, E], `routed/expert/gate/kernel`, `…/up/…` [E, D, F],
    `…/down/…` [E, F, D] (with biases, `…/bias` each), `routed/correction` [E], `shared/gate`,
    `…/up`, `…/down`, and `shared_gate` [D]; each with a leading axis for the layers of a stack.
    """

    def __init__(self, routed: MoE, shared: Shared | None, dim: int, rngs: nnx.Rngs):
        self.routed = Mixture(routed, dim, rngs, STYLE)
        self.shared = None if shared is None else SwiGLU(dim, shared.hidden, rngs)
        gated = shared is not None and shared.gated
        self.shared_gate = weight(rngs, dim, scale=dim) if gated else None

    def __call__(
        self, x: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], Reports]:
        y, reports = self.routed(x, context)
        if self.shared is not None:
            with jax.named_scope("shared"):
                y = y + self._shared(x, self.shared)
        return y, reports

    def _shared(self, x: Float[Array, "B T D"], shared: SwiGLU) -> Float[Array, "B T D"]:
        if self.shared_gate is None:
            return shared(x)
        share = jax.nn.sigmoid(project("btd,d->bt", x, self.shared_gate[...]))
        return shared(x) * share[..., None]


class SparseBlock(Block):
    """A `Block` whose feed-forward, such as `SparseFeed`, sees the context and reports."""

    def fed(self, x: Float[Array, "B T D"], context: Any) -> tuple[Float[Array, "B T D"], Reports]:
        """What the feed-forward makes of the normed x, and what it reports."""
        return self.feed(x, context)
