"""Objectives: `(model, params, batch, rng) -> Terms`, pure, the same shape for every algorithm."""

# B batch, T length, V vocabulary.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jscale.errors import ConfigError
from jscale.models.model import Model, Params

Batch = Mapping[str, Shaped[Array, "B ..."]]


class Terms(NamedTuple):
    """What a loss gives: a loss and a weight per term (token, sequence, pair), and metrics.

    The step minimises Σ losses · weights / Σ weights over the whole batch, however it is split.
    A metric is (Σ value · weight, Σ weight), so that it too can be summed over microbatches.
    """

    losses: Float[Array, "*terms"]
    weights: Float[Array, "*terms"]
    metrics: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


@runtime_checkable
class Loss(Protocol):
    """An objective. `rng` is for what the loss itself draws; it differs for every microbatch."""

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms: ...


def logprobs(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The log-probability of each target, and log Σ exp of the logits, both in float32."""
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, -1)
    # A sum over a mask rather than a gather: a vocabulary split over devices stays split.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.where(hit, logits, 0.0).sum(-1) - normalizer, normalizer


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token, −log p(target), over tokens of weight 1.

    `z_loss` adds z_loss · log²Z, which keeps logits from drifting (Chowdhery et al. 2022,
    arXiv 2204.02311, section 5).

    Raises:
        ConfigError: a negative `z_loss`.
    """

    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ConfigError(f"z_loss must not be negative, not {self.z_loss}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        network = model.bind(params)
        out = network(batch["inputs"], batch.get("positions"), batch.get("segments"))
        logp, normalizer = logprobs(network.unembed(out.hidden), batch["targets"])
        weights = batch["weights"].astype(jnp.float32)
        nll, total = -(logp * weights).sum(), weights.sum()
        losses = -logp + self.z_loss * jnp.square(normalizer)
        return Terms(losses, weights, {"nll": (nll, total)})
