"""The objective of encoder-decoders: the next token of a target, given its source."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jscale.errors import ConfigError
from jscale.losses import Batch, Terms, token_logprobs, told
from jscale.models.decoder import Answering
from jscale.models.model import Model, Params


@dataclass(frozen=True)
class GivenSource:
    """Cross-entropy of the next token of a target, −log p(target | source), all inputs given.

    A batch has source [B, S], inputs, targets and weights [B, T]; it may have source_segments,
    segments (a target's segment reads the source's of the same number; 0 is padding) and
    positions.

    Raises:
        ConfigError: a negative `z_loss`; when called, a batch without a source or a network that
            reads none.
    """

    reads: ClassVar[tuple[str, ...]] = ("source", "inputs", "targets", "weights")

    z_loss: float = 0.0  # weight of log²Z, which keeps scores from drifting

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ConfigError(f"z_loss must not be negative, not {self.z_loss}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        if missing := [name for name in self.reads if name not in batch]:
            raise ConfigError(
                f"a batch of pairs has {', '.join(self.reads)}: {missing[0]} is missing"
            )
        network = answering(model, model.bind(params, rng))
        out = network(
            *(batch["source"], batch["inputs"], batch.get("positions"), batch.get("segments")),
            source_segments=batch.get("source_segments"),
        )
        weights = batch["weights"].astype(jnp.float32)
        logp, normalizer = token_logprobs(
            network, out.hidden, batch["targets"], weights, self.z_loss
        )
        nll, total = -(logp * weights).sum(), weights.sum()
        losses = -logp + self.z_loss * jnp.square(normalizer) + out.penalty
        return Terms(losses, weights, {"nll": (nll, total), **told(out.reports, total)}, out.loads)


def answering(model: Model, network: Any) -> Any:
    """The network, if it reads a source.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(network, Answering):
        kind = type(model.config).__name__
        raise ConfigError(f"GivenSource is for an encoder-decoder, and {kind} is none")
    return network
