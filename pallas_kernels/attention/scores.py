"""What becomes of the products q kᵀ before their softmax, as a value."""

# B batch, T query length, S key length, N heads.

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from jscale.errors import ConfigError


@dataclass(frozen=True)
class Scores:
    """scale · q kᵀ, capped, then biased, and the softmax's extra weight.

    Attributes:
        scale: None is 1 / √H.
        cap: scores become cap · tanh(scores / cap) (Gemma 2, arXiv 2408.00118).
        bias: [B or 1, N or 1, T, S], added (T5's and TorchScale's relative bias); it has a
            gradient, of its own shape.
        slopes: [N], of ALiBi: −slope · |query's position − key's position| is added (Press et al.
            2022, arXiv 2108.12409). Constants: no gradient flows to them.
        sinks: [N], scores of a key with the value 0 that every query sees (attention sinks,
            Xiao et al. 2024, arXiv 2309.17453, learned as in gpt-oss); they have a gradient.

    Raises:
        ConfigError: a cap that is not positive.
    """

    scale: float | None = None
    cap: float | None = None
    bias: Float[Array, "_ _ T S"] | None = None
    slopes: Float[Array, " N"] | None = None
    sinks: Float[Array, " N"] | None = None

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap <= 0:
            raise ConfigError(f"the cap of attention's scores must be positive, not {self.cap}")

    def of(self, head: int) -> float:
        """The scale for heads of a size."""
        return head**-0.5 if self.scale is None else self.scale


jax.tree_util.register_dataclass(Scores, ["bias", "slopes", "sinks"], ["scale", "cap"])
PLAIN = Scores()
