"""Objectives: `(model, params, batch, rng) -> Terms`, pure, the same shape for every algorithm."""

# B batch, T length, D model size, V vocabulary.

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jscale.errors import ConfigError, UserError
from jscale.models.decoder import Decoder, Foreseeing, Foreseen, Output, Scoring, logprobs
from jscale.models.load import Load
from jscale.models.model import Model, Params

Batch = Mapping[str, Shaped[Array, "B ..."]]


class Terms(NamedTuple):
    """What a loss gives: a loss and a weight per term (token, sequence, pair), and metrics.

    The step minimises Σ losses · weights / Σ weights over the whole batch, however it is split.
    A metric is (Σ value · weight, Σ weight), so that it too can be summed over microbatches.
    `loads` are those of the network's output.
    """

    losses: Float[Array, "*terms"]
    weights: Float[Array, "*terms"]
    metrics: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    loads: Mapping[str, Load] = {}


RESERVED = frozenset("loss tokens grad_norm skipped streak spikes scale replays rate".split())


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
    """An objective. `rng` is for what it and its network draw; it differs for every microbatch.

    `model.bind(params, rng)` gives a network that draws in training, and is still in evaluation.
    """

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms: ...


def token_logprobs(
    network: Decoder | Scoring,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"] | None = None,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`logprobs` by a network's own way, if it has one that holds no whole logits (`Scoring`)."""
    if isinstance(network, Scoring):
        return network.logprobs(hidden, targets, weights, z_loss, smoothing)
    return logprobs(network.unembed(hidden), targets, smoothing)


def told(
    reports: Mapping[str, Array], weight: Float[Array, ""]
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """What a network's blocks report, as metrics: the mean over layers, of that weight."""
    return {
        name: (value.astype(jnp.float32).mean() * weight, weight) for name, value in reports.items()
    }


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token, −log p(target), over tokens of weight 1.

    `z_loss` adds z_loss · log²Z, which keeps logits from drifting (Chowdhery et al. 2022,
    arXiv 2204.02311, section 5). `smoothing` ε takes (1 − ε) · target + ε / V as the target
    (Szegedy et al. 2015, arXiv 1512.00567), in training only: there is no `nll` then, and on
    held-out text the loss is measured without it. A token of weight 0 adds nothing, whatever its
    target is, which may be outside the vocabulary, such as −100.

    Raises:
        ConfigError: a negative `z_loss`, or `smoothing` that is not from 0 to below 1.
    """

    reads: ClassVar[tuple[str, ...]] = ("inputs", "targets", "weights")

    z_loss: float = 0.0  # of log²Z that is added
    smoothing: float = 0.0  # of the target that all tokens share, in training

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ConfigError(f"z_loss must not be negative, not {self.z_loss}")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing must be from 0 to below 1, not {self.smoothing}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        network = model.bind(params, rng)
        return self.terms(network, network(*_rows(batch)), batch)

    def terms(self, network: Decoder | Scoring, out: Output, batch: Batch) -> Terms:
        """The terms of what a network has made of a batch."""
        weights = batch["weights"].astype(jnp.float32)
        logp, normalizer = token_logprobs(
            *(network, out.hidden, batch["targets"], weights, self.z_loss), self.smoothing
        )
        total = weights.sum()
        nll = {} if self.smoothing else {"nll": (-(logp * weights).sum(), total)}
        losses = -logp + self.z_loss * jnp.square(normalizer) + out.penalty
        return Terms(losses, weights, {**nll, **told(out.reports, total)}, out.loads)


def _rows(batch: Batch) -> tuple[Any, Any, Any]:
    return batch["inputs"], batch.get("positions"), batch.get("segments")


@dataclass(frozen=True)
class FurtherTokens(NextToken):
    """`NextToken`, and the mean over all depths of the cross-entropy of tokens further ahead.

    For a network that looks ahead, such as a DeepSeek V3 with `ahead` of 1. Only what stands so far
    from the beginning of its text is foreseen; the mean is over all tokens nevertheless, as in the
    paper. On held-out text the next token alone is measured. Source: DeepSeek-AI 2024,
    arXiv 2412.19437, section 2.2.

    Raises:
        ConfigError: as `NextToken`, a negative `share`, or a network that does not look ahead.
    """

    share: float = 0.3  # of the further tokens' loss that is added

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share < 0:
            raise ConfigError(f"share must not be negative, not {self.share}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        network = model.bind(params, rng)
        if not isinstance(network, Foreseeing):
            name = type(model.config).__name__
            raise ConfigError(f"FurtherTokens needs a network that looks ahead: no {name} does")
        out = network(*_rows(batch))
        seen = network.foresee(out.hidden, *_rows(batch))
        if not seen.depths:
            raise ConfigError("FurtherTokens needs a network that looks ahead: set model.ahead=1")
        losses, weights, metrics, loads = self.terms(network, out, batch)
        further = self._further(network, seen, batch["targets"], weights)
        total = weights.sum()
        metrics |= {"further": ((further * weights).sum(), total), **told(seen.reports, total)}
        losses = losses + self.share * further + seen.penalty
        return Terms(losses, weights, metrics, {**loads, **seen.loads})

    def _further(
        self, network: Any, seen: Foreseen, targets: Int[Array, "B T"], weights: Array
    ) -> Float[Array, "B T"]:
        """−log p of tokens, by what was known of them further back: the mean over depths."""
        total = jnp.zeros_like(weights)
        for hidden, real in seen.depths:
            counts = real.astype(jnp.float32)
            total -= counts * token_logprobs(network, hidden, targets, counts * weights)[0]
        return total / len(seen.depths)


def measured(loss: Loss) -> Loss:
    """The loss as it is measured on held-out text: that of the next token without smoothing."""
    return NextToken(loss.z_loss) if isinstance(loss, NextToken) else loss
