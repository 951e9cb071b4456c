"""How evenly experts are used: the loss that asks for it, and what is reported.

Source: Lepikhin et al. 2020, GShard, arXiv 2006.16668; the figures are those of fairseq and
TorchScale.
"""

# S tokens of a group, E experts, C choices per token.

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError, did_you_mean

Reports = dict[str, Float[Array, ""]]

EXTREME = 0.2  # the share of experts that count as the most and the least used
EPS = 1.1920929e-07  # of float32
SCOPES = ("microbatch", "sequence", "global")
COUNTED = ("chosen", "likeliest")


@dataclass(frozen=True)
class Balance:
    """How a network is brought to use its experts evenly.

    A loss asks for it: weight · E · Σ_e f_e P_e, where f_e is the share of choices that expert e
    has, and P_e the mean of its probability. It is 1 (times the weight) where use is even. Within a
    "microbatch" each of the layer's groups of tokens is to be even, in a "sequence" each row of the
    batch, and "global" is the whole batch of a step, however it is split over devices and
    microbatches: where gradients are accumulated that takes one more pass forward. Source: Fedus et
    al. 2021, arXiv 2101.03961; of sequences DeepSeek-AI 2024, arXiv 2412.19437; global Qiu et al.
    2025, arXiv 2501.11873. The squares of logΣexp of scores: Zoph et al. 2022, ST-MoE, 2202.08906.

    A corrected choice (`TopK(corrected=True)`) is balanced without a loss as well: after each step
    the correction of an expert grows or falls by `steer`, as it was chosen less or more often than
    the mean. Source: Wang et al. 2024, arXiv 2408.15664.

    Raises:
        ConfigError: a negative number, or an unknown name.
    """

    weight: float = 0.001  # of the loss that asks for even use
    scope: str = "microbatch"  # what is to be even: microbatch, sequence, global
    z: float = 0.0  # weight of the mean of (logΣexp of a token's scores)²
    steer: float = 0.001  # by how much a correction moves after each step; 0: it stays
    counted: str = "chosen"  # f_e is of those chosen, or of the likeliest without a correction

    def __post_init__(self) -> None:
        for name in ("weight", "z", "steer"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"Balance.{name} must not be negative, not {vars(self)[name]}")
        for name, known in (("scope", SCOPES), ("counted", COUNTED)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"no {value!r} for Balance.{name}; {did_you_mean(value, known)}")

    def choices(self, gates: Float[Array, "S E"], chosen: Int[Array, "S K"]) -> Int[Array, "S K"]:
        """The choices that are counted, as many as were chosen."""
        if self.counted == "chosen":
            return chosen
        return jax.lax.top_k(gates, chosen.shape[1])[1]


def mean(x: Float[Array, "S *E"], real: Bool[Array, " S"]) -> Float[Array, "*E"]:
    """The mean over the tokens that count; 0 if none does."""
    own = jnp.where(real.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)
    return own.sum(0) / jnp.maximum(real.sum(), 1).astype(own.dtype)


def balance_loss(
    gates: Float[Array, "S E"], index: Int[Array, "S *C"], real: Bool[Array, " S"]
) -> Float[Array, ""]:
    """E · Σ_e (mean probability of e) · (share of e in the choices that count)."""
    experts = gates.shape[1]
    return experts * (mean(gates, real) * shares(index, real, experts)).sum()


def shares(index: Int[Array, "S *C"], real: Bool[Array, " S"], experts: int) -> Float[Array, " E"]:
    """Of the choices of the tokens that count, the share that each expert has."""
    chosen = jax.nn.one_hot(index, experts, dtype=jnp.float32)
    return mean(chosen if index.ndim == 1 else chosen.mean(1), real)


def entropy(gates: Float[Array, "S E"], real: Bool[Array, " S"]) -> Float[Array, ""]:
    """The mean entropy of the probabilities of a token, in nats."""
    logs = jnp.log(jnp.clip(gates, EPS, 1 - EPS))
    return mean(-(gates * logs).sum(1), real)


def usage(name: str, index: Int[Array, "S *C"], real: Bool[Array, " S"], experts: int) -> Reports:
    """Of one choice of each token, or all: experts that nobody chose, and the percentage of choices
    that the most and the least chosen fifth of experts have.
    """
    percent = 100 * jnp.sort(shares(index, real, experts), descending=True)
    few = max(math.ceil(experts * EXTREME), 1)
    return {
        f"{name}_unused": (percent == 0).sum().astype(jnp.float32),
        f"{name}_top": percent[:few].sum(),
        f"{name}_bottom": percent[-few:].sum(),
    }


def overflow(name: str, wanted: Bool[Array, " S"], kept: Bool[Array, " S"]) -> Reports:
    """The percentage of the wanted choices that found no slot."""
    count = lambda these: these.sum().astype(jnp.float32)
    lost = 100 * count(wanted & ~kept) / jnp.maximum(count(wanted), 1)
    return {f"{name}_overflow": lost}
