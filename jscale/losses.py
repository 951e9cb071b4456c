"""Objectives: `(model, params, batch, rng) -> Terms`, pure, the same shape for every algorithm."""

# B batch, T length, D model size, V vocabulary.

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jscale.errors import ConfigError, UserError
from jscale.models.decoder import Decoder, Scoring
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


RESERVED = frozenset("loss tokens grad_norm skipped streak spikes scale rate".split())


def checked(terms: Any) -> Terms:
    """What a loss has returned, if it is as it must be.

    Raises:
        ConfigError: it is no `Terms`, a loss lacks its weight, or a metric its own name or weight.
    """
    if not isinstance(terms, Terms):
        raise ConfigError(f"a loss returns Terms(losses, weights, metrics), not {terms!r:.80}")
    if terms.losses.shape != terms.weights.shape:
        raise ConfigError(
            f"a loss gives each term its weight: {terms.losses.shape} losses and"
            f" {terms.weights.shape} weights do not match"
        )
    for name, metric in terms.metrics.items():
        if name in RESERVED:
            raise ConfigError(f"a metric of a loss cannot be named {name!r}: the step reports one")
        if not (isinstance(metric, tuple) and len(metric) == 2):
            raise ConfigError(f"the metric {name!r} must be (sum of value times weight, weight)")
    return terms


def evaluate_loss(
    loss: "Loss", model: Model, params: Params, batch: Batch, rng: PRNGKeyArray
) -> Terms:
    """The terms of a loss; a mistake in a user's own loss is told as theirs, with its line.

    Raises:
        ConfigError: a loss that is not jscale's own failed, or returned what it must not.
    """
    try:
        return checked(loss(model, params, batch, rng))
    except UserError:
        raise
    except Exception as error:
        home = sys.modules.get(type(loss).__module__)
        file = getattr(home, "__file__", None)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        if type(loss).__module__.startswith("jscale.") or not lines:
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ConfigError(
            f"the loss {type(loss).__name__} failed at {Path(str(file)).name}:{lines[-1]}: {reason}"
        ) from error


@runtime_checkable
class Loss(Protocol):
    """An objective. `rng` is for what the loss itself draws; it differs for every microbatch."""

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms: ...


@jax.named_scope("loss")
def logprobs(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The log-probability of each target, and log Σ exp of the logits, both in float32."""
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, -1)
    # A sum over a mask rather than a gather: a vocabulary split over devices stays split.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.where(hit, logits, 0.0).sum(-1) - normalizer, normalizer


def token_logprobs(
    network: Decoder,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"] | None = None,
    z_loss: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`logprobs` by a network's own way, if it has one that holds no whole logits (`Scoring`)."""
    if isinstance(network, Scoring):
        return network.logprobs(hidden, targets, weights, z_loss)
    return logprobs(network.unembed(hidden), targets)


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
        weights = batch["weights"].astype(jnp.float32)
        logp, normalizer = token_logprobs(
            network, out.hidden, batch["targets"], weights, self.z_loss
        )
        nll, total = -(logp * weights).sum(), weights.sum()
        losses = -logp + self.z_loss * jnp.square(normalizer)
        return Terms(losses, weights, {"nll": (nll, total)})
