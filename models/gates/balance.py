"""How evenly experts are used: the loss that asks for it, and what is reported.

Source: Lepikhin et al. 2020, GShard, arXiv 2006.16668; the figures are those of fairseq and
TorchScale.
"""

# S tokens of a group, E experts, C choices per token.

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Reports = dict[str, Float[Array, ""]]

EXTREME = 0.2  # the share of experts that count as the most and the least used
EPS = 1.1920929e-07  # of float32


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
