"""The objective of sentence encoders: which text belongs to which, among all of a batch.

Source: Henderson et al. 2017, arXiv 1705.00652 (section 4.4); Reimers & Gurevych 2019, 1908.10084.
"""

# B batch, S length of a first text, T length of its partner, E size of a vector.

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jscale.contrastive import compared
from jscale.errors import ConfigError
from jscale.losses import Batch, Terms
from jscale.models.model import Model, Params

FIELDS = ("source", "source_segments", "inputs", "targets", "segments")


@runtime_checkable
class Placing(Protocol):
    """A network that gives each text a vector."""

    def vectors(
        self, tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B E"]: ...


@dataclass(frozen=True)
class MatchedTexts:
    """Cross-entropy of a text's partner among those of the batch, and of the other way round.

    It reads the batches of `PairData(packing="padded")`: a pair in each row, of which the second
    has a place more than `length`. All rows of a batch are compared, on whatever devices they lie;
    with `accumulate`, those of a microbatch. A row without a pair counts for nothing, and one with
    several is not a number. `accuracy` is the part of the texts whose own partner is the nearest.

    Raises:
        ConfigError: a scale that is not positive; when called, another batch, or a network that
            gives no vectors.
    """

    reads: ClassVar[tuple[str, ...]] = FIELDS

    scale: float = 20.0  # what multiplies the products of vectors: 1 / temperature

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError(f"scale must be positive, not {self.scale}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        if missing := [name for name in FIELDS if name not in batch]:
            raise ConfigError(
                f"MatchedTexts() learns from pairs, a batch with {', '.join(FIELDS)}: {missing[0]}"
                ' is missing; data=PairData(…, packing="padded") has them'
            )
        network = model.bind(params, rng)
        if not isinstance(network, Placing):
            raise ConfigError(
                "MatchedTexts() needs a model that gives texts vectors, such as"
                f' BERT(pooling=Pooling("mean")), not a {type(model.config).__name__}'
            )
        if getattr(model.config, "pooling", True) is None:
            raise ConfigError('the model makes no vectors of texts: pooling=Pooling("mean")')
        # A target is predicted, its beginning is not: both together are the text.
        tokens = jnp.concatenate([batch["inputs"][:, :1], batch["targets"]], 1)
        segments = jnp.concatenate([batch["segments"][:, :1], batch["segments"]], 1)
        first = network.vectors(batch["source"], batch["source_segments"])
        second = network.vectors(tokens, segments)
        real = (segments > 0).any(1)
        single = jnp.where(segments.max(1) > 1, jnp.nan, 1.0)
        losses, right = compared(first, second, jnp.float32(self.scale), real)
        weights = real.astype(jnp.float32)
        count = weights.sum()
        return Terms(losses * single, weights, {"accuracy": ((right * weights).sum(), count)})
