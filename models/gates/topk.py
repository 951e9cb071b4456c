"""So many experts for each token as one likes, and no token is ever dropped."""

# S tokens of a group, E experts, C choices per token.

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.models.gates import balance
from jscale.models.gates.routing import Routing, Wish, check_enough, finite, routed
from jscale.models.gates.spread import PerGroup, among_best, group_size, grouped_by

WEIGHTS = ("softmax", "softmax_of_chosen", "sigmoid", "sqrt_softplus")
# Is added to what is divided by: sigmoids of all chosen may be 0. With the 1e-20 of releases, which
# makes a difference for scores below −40 alone, slopes (1 / TINY²) would be infinite.
TINY = 1e-18
FAR = -30.0  # below it √log(1 + eˣ) is e^(x/2) in float32; its own slope would be infinite at 0
MASKED = {"out": -jnp.inf, "zero": 0.0}


@dataclass(frozen=True)
class Limit:
    """Experts stand in `groups`, and a token's are all in the `kept` best of these.

    A group is as good as the sum of its `best` best experts. Source: DeepSeek-AI 2024,
    arXiv 2405.04434 (the best one), and 2412.19437 (the two best). Experts of other groups are out.
    Where they count as "zero" instead, as in transformers 4 and much code after it, they are chosen
    all the same if corrections make others negative: for the same results as that code.

    Raises:
        ConfigError: a number below 1, more groups kept than there are, or an unknown mask.
    """

    groups: int  # of experts, one after the other
    kept: int  # groups that a token's experts may be of
    best: int = 2  # experts that a group is judged by
    masked: str = "out"  # what experts of other groups count as: out, zero

    def __post_init__(self) -> None:
        for name in ("groups", "kept", "best"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Limit.{name} must be at least 1, not {getattr(self, name)}")
        if self.kept > self.groups:
            raise ConfigError(f"Limit keeps {self.kept} groups of experts and has {self.groups}")
        if self.masked not in MASKED:
            hint = did_you_mean(self.masked, MASKED)
            raise ConfigError(f"no {self.masked!r} for Limit.masked; {hint}")

    def check(self, experts: int, choices: int) -> None:
        """Raises ConfigError unless so many experts make these groups, and enough are kept."""
        size = group_size(experts, self.groups)
        if self.best > size:
            raise ConfigError(f"Limit.best={self.best} must be at most a group's {size} experts")
        if choices > self.kept * size:
            raise ConfigError(
                f"a token has {choices} experts, and the groups kept for it have {self.kept * size}"
            )

    def __call__(self, ranked: Float[Array, "S E"], choices: int) -> Float[Array, "S E"]:
        """What experts are chosen by, masked in groups that are not kept."""
        grouped = grouped_by(ranked, self.groups)
        among = among_best(lax.top_k(grouped, self.best)[0].sum(-1), self.kept)
        return jnp.where(among[:, :, None], grouped, MASKED[self.masked]).reshape(ranked.shape)


@dataclass(frozen=True)
class TopK:
    """The best experts, none of which is ever full.

    Their weights are a softmax over all experts or over the chosen ones, or each a sigmoid or
    √log(1 + eˣ) of its score. Source: Shazeer et al. 2017, arXiv 1701.06538; sigmoids and a
    correction as in DeepSeek-V3, arXiv 2412.19437; roots as Megatron Core has them for
    DeepSeek-V4.

    Raises:
        ConfigError: a number below 1, or unknown weights.
    """

    choices: int = 2  # experts of a token
    weights: str = "softmax"  # softmax, softmax_of_chosen, sigmoid, sqrt_softplus
    normalise: bool = True  # whether a token's weights are made to sum to 1
    scale: float = 1.0  # of the weights, in the end
    corrected: bool = False  # whether experts are chosen, not weighted, by scores and a correction
    limit: Limit | PerGroup | None = None  # to some groups of experts, or some of each

    def __post_init__(self) -> None:
        if self.choices < 1:
            raise ConfigError(f"TopK.choices must be at least 1, not {self.choices}")
        if self.weights not in WEIGHTS:
            hint = did_you_mean(self.weights, WEIGHTS)
            raise ConfigError(f"no weights {self.weights!r} of TopK; {hint}")
        if self.weights == "softmax_of_chosen" and not self.normalise:
            raise ConfigError("a softmax_of_chosen sums to 1: TopK.normalise must be True")

    def check(self, experts: int) -> None:
        """Raises ConfigError unless so many experts can be chosen from."""
        check_enough(self, experts)
        if self.limit is not None:
            self.limit.check(experts, self.choices)

    @property
    def alone(self) -> bool:
        """No expert is ever full."""
        return True

    def draws(self, tokens: int, experts: int) -> None:
        """Nothing is drawn."""
        return None

    def __call__(
        self,
        scores: Float[Array, "S E"],
        real: Bool[Array, " S"],
        *,
        training: bool,
        uniforms: Array | None = None,
        correction: Float[Array, " E"] | None = None,
    ) -> Routing:
        """The experts of the tokens of one group; a `correction` gets no gradient."""
        scores = finite(scores)
        values, _ = self._values(scores)
        ranked = values if correction is None else values + lax.stop_gradient(correction)
        ranked = ranked if self.limit is None else self.limit(ranked, self.choices)
        return self.given(scores, real, lax.top_k(ranked, self.choices)[1])

    def given(
        self, scores: Float[Array, "S E"], real: Bool[Array, " S"], index: Int[Array, "S C"]
    ) -> Routing:
        """The routing where tokens have these experts, whoever chose them; scores are finite."""
        values, gates = self._values(scores)
        weights = self._weights(jnp.take_along_axis(values, index, 1))
        reports = {
            "gate_entropy": balance.entropy(gates, real),
            **balance.usage("chosen", index, real, scores.shape[1]),
        }
        kept = jnp.broadcast_to(real[:, None], index.shape)
        return routed(Wish(index, kept, kept), weights, gates, reports)

    def _values(
        self, scores: Float[Array, "S E"]
    ) -> tuple[Float[Array, "S E"], Float[Array, "S E"]]:
        """What experts are chosen by, and probabilities that sum to 1."""
        if self.weights in ("sigmoid", "sqrt_softplus"):
            values = jax.nn.sigmoid(scores) if self.weights == "sigmoid" else _root(scores)
            return values, values / (values.sum(1, keepdims=True) + TINY)
        gates = jax.nn.softmax(scores)
        return (gates if self.weights == "softmax" else scores), gates

    def _weights(self, chosen: Float[Array, "S C"]) -> Float[Array, "S C"]:
        if self.weights == "softmax_of_chosen":
            return self.scale * jax.nn.softmax(chosen)
        total = chosen.sum(1, keepdims=True) + TINY if self.normalise else 1.0
        return self.scale * chosen / total


def _root(x: Float[Array, "S E"]) -> Float[Array, "S E"]:
    """√log(1 + eˣ), with finite slopes everywhere."""
    near = x > FAR
    root = jnp.sqrt(jax.nn.softplus(jnp.where(near, x, 0.0)))
    return jnp.where(near, root, jnp.exp(jnp.where(near, FAR, x) / 2))
