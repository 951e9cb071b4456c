"""Positions that are added to the scores of attention."""

# B batch, T query length, S key length, N heads, P buckets.

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jscale.errors import ConfigError
from jscale.models.initial import Scheme, named, table
from jscale.pallas_kernels.attention import Scores


class Biased(ABC):
    """Something that is added to scores by the positions of query and key, in all layers alike."""

    @abstractmethod
    def build(self, heads: int, rngs: nnx.Rngs, scheme: Scheme) -> Any:
        """A layer that maps (scores, positions of queries, of keys) to the scores with it."""


@dataclass(frozen=True)
class RelativeBias(Biased):
    """A learned number for each head and bucket of distances. Source: Raffel et al. 2020, T5.

    Near distances have a bucket each, farther ones share logarithmically. All layers share the
    table; cross-attention has its own.

    Raises:
        ConfigError: too few or an odd number of buckets, or a distance that they already cover.
    """

    buckets: int = 32  # rows of the table
    distance: int = 128  # from which on all distances share the last bucket
    ahead: bool = True  # whether half the rows are for keys after the query (unseen by decoders)

    def __post_init__(self) -> None:
        least = 4 if self.ahead else 2
        if self.buckets < least or self.buckets % least:
            raise ConfigError(f"buckets must be a multiple of {least}, not {self.buckets}")
        if self.distance <= self.buckets // least:
            raise ConfigError(
                f"distance must be above {self.buckets // least}, which {self.buckets} buckets tell"
                f" apart exactly, not {self.distance}"
            )

    def build(self, heads: int, rngs: nnx.Rngs, scheme: Scheme) -> "Buckets":
        return Buckets(self, heads, rngs, scheme)

    def bucket(self, away: Int[Array, "..."]) -> Int[Array, "..."]:
        """The bucket of a distance, the key's position less the query's."""
        near = jnp.asarray(self._near)
        if not self.ahead:
            return near[jnp.clip(-away, 0, self.distance)]
        bucket = near[jnp.minimum(jnp.abs(away), self.distance)]
        return bucket + jnp.where(away > 0, self.buckets // 2, 0)

    @property
    def _near(self) -> np.ndarray:
        """The bucket of each distance back up to `distance`, by NumPy: on every device the same."""
        count = self.buckets // 2 if self.ahead else self.buckets
        exact, away = count // 2, np.arange(self.distance + 1)
        ratio = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
        steps = np.log(ratio) / np.float32(math.log(self.distance / exact))
        shared = exact + (steps * np.float32(count - exact)).astype(np.int32)
        return np.where(away < exact, away, np.minimum(shared, count - 1)).astype(np.int32)


class Buckets(nnx.Module):
    """The table of `RelativeBias`."""

    def __init__(self, c: RelativeBias, heads: int, rngs: nnx.Rngs, scheme: Scheme):
        self.c = c
        rows = table(rngs, scheme.places, heads, rows=c.buckets, heads=heads)
        self.table = named(rows[...], None, "heads")

    def __call__(
        self, scores: Scores, queries: Int[Array, "B T"], keys: Int[Array, "B S"]
    ) -> Scores:
        """Scores with the bias added to theirs."""
        away = keys[:, None, :] - queries[:, :, None]
        bias = self.table[...].astype(jnp.float32)[self.c.bucket(away)].transpose(0, 3, 1, 2)
        return replace(scores, bias=bias if scores.bias is None else scores.bias + bias)


@dataclass(frozen=True)
class Alibi(Biased):
    """Less of a score with distance, at a slope for each head. Source: Press et al., 2108.12409."""

    def build(self, heads: int, rngs: nnx.Rngs, scheme: Scheme) -> "Slopes":
        return Slopes(heads)


class Slopes(nnx.Module):
    """What `Alibi` builds; it has no weights."""

    def __init__(self, heads: int):
        self.slopes = tuple(slopes(heads))

    def __call__(
        self, scores: Scores, queries: Int[Array, "B T"], keys: Int[Array, "B S"]
    ) -> Scores:
        """Scores with these slopes."""
        return replace(scores, slopes=jnp.asarray(self.slopes, jnp.float32))


def slopes(heads: int) -> list[float]:
    """The slopes of ALiBi: a geometric sequence for a power of two; else that and every other one
    of the next power's.

    >>> slopes(2)
    [0.0625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    if power == heads:
        return first
    return first + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
