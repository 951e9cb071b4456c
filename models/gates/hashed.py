"""A token's experts are told by its number alone."""

# S tokens of a group, E experts, C choices per token.

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jscale.errors import ConfigError, did_you_mean
from jscale.models.gates.routing import Routing, check_enough, finite
from jscale.models.gates.topk import TopK

WEIGHTS = ("equal", "softmax")


@dataclass(frozen=True)
class Hash:
    """The same experts for the same token, wherever it stands, learned by nobody.

    Of as many numbers one after the other as there are experts each goes to another expert, in an
    order that is shuffled by the `seed`: experts have equally many tokens of the vocabulary, and as
    tokenizers number tokens by how frequent they are, about equally many of a text. With "equal"
    weights the router is not used; a `Balance(0.0)` is what goes with it. Source: Roller et al.
    2021, Hash Layers, arXiv 2106.04426.

    Raises:
        ConfigError: a number below 1, a seed that is no uint32, or unknown weights.
    """

    choices: int = 1  # experts of a token
    weights: str = "equal"  # equal: 1 / choices each; softmax: their probabilities
    seed: int = 0  # of the order

    def __post_init__(self) -> None:
        if self.choices < 1:
            raise ConfigError(f"Hash.choices must be at least 1, not {self.choices}")
        if self.weights not in WEIGHTS:
            hint = did_you_mean(self.weights, WEIGHTS)
            raise ConfigError(f"no weights {self.weights!r} of Hash; {hint}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"Hash.seed must be from 0 to 2³² − 1, not {self.seed}")

    @property
    def alone(self) -> bool:
        """No other token matters."""
        return True

    @property
    def by_token(self) -> bool:
        """It must be told the numbers of tokens."""
        return True

    @property
    def corrected(self) -> bool:
        """Scores choose nobody."""
        return False

    def check(self, experts: int) -> None:
        """Raises ConfigError unless so many experts can be chosen from."""
        check_enough(self, experts)

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
        tokens: Int[Array, " S"] | None = None,
    ) -> Routing:
        """The experts of the tokens of one group.

        Raises:
            ConfigError: the numbers of tokens are not told.
        """
        if tokens is None:
            raise ConfigError(
                "Hash() finds experts by the numbers of tokens, which this network does not hand"
                " to its layers: choose by TopK() here"
            )
        index = self.of(tokens, scores.shape[1])
        plain = TopK(self.choices, normalise=False).given(finite(scores), real, index)
        if self.weights == "softmax":
            return plain
        routed = plain.experts < scores.shape[1]
        return plain._replace(weights=jnp.where(routed, 1 / self.choices, 0.0))

    def of(self, tokens: Int[Array, " S"], experts: int) -> Int[Array, "S C"]:
        """The experts of tokens with these numbers."""
        number = tokens.astype(jnp.uint32)
        first = number % experts + _mixed(number // experts + jnp.uint32(self.seed)) % experts
        apart = jnp.arange(self.choices) * (experts // self.choices)
        return (first.astype(jnp.int32)[:, None] + apart) % experts


def _mixed(x: UInt32[Array, " S"]) -> UInt32[Array, " S"]:
    """Well mixed bits. Source: Appleby 2011, MurmurHash3's last step."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
