"""Positions that are added to embeddings."""

# B batch, T length, D model size, P places.

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.initial import Scheme, named, table

FIRST = 2  # the row of position 0 in a learned table, as in fairseq and TorchScale


class Embedded(ABC):
    """A vector for each position."""

    @abstractmethod
    def build(self, dim: int, rngs: nnx.Rngs, scheme: Scheme) -> nnx.Module:
        """A layer that gives vectors [B, T, D] for positions [B, T]."""


@dataclass(frozen=True)
class Learned(Embedded):
    """A learned vector for each position.

    Raises:
        ConfigError: fewer than one position, or a first row below 0.
    """

    length: int = 1024  # how many positions there are
    first: int = FIRST  # the row of position 0: 2 in TorchScale, 0 in GPT-2

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"learned positions need a length of at least 1, not {self.length}")
        if self.first < 0:
            raise ConfigError(f"the first row of learned positions must be 0 or more: {self.first}")

    def build(self, dim: int, rngs: nnx.Rngs, scheme: Scheme) -> nnx.Module:
        return Places(self, dim, rngs, scheme)


class Places(nnx.Module):
    """The table of `Learned`."""

    def __init__(self, c: Learned, dim: int, rngs: nnx.Rngs, scheme: Scheme):
        self.length, self.first = c.length, c.first
        rows = table(rngs, scheme.places, dim, rows=c.length + c.first, embed=dim)
        self.table = named(rows[...], None, "embed")

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Vectors of positions; those of positions beyond the table are not numbers.

        Raises:
            ConfigError: a row is longer than the table.
        """
        if positions.shape[1] > self.length:
            raise ConfigError(
                f"rows of {positions.shape[1]} tokens do not fit Learned(length={self.length})"
            )
        table = constrain(self.table[...], None, "embed")  # whole over fsdp while it is read
        return table.at[positions + self.first].get(mode="fill", fill_value=jnp.nan)


@dataclass(frozen=True)
class Sinusoidal(Embedded):
    """sin and cos of position · base^(−2i/D), in turn. Source: Vaswani et al. 2017, 1706.03762.

    Raises:
        ConfigError: a base that is not above 1.
    """

    base: float = 10_000.0  # the slowest frequency is about 1 / base

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise ConfigError(f"the base of sinusoidal positions must be above 1, not {self.base}")

    def build(self, dim: int, rngs: nnx.Rngs, scheme: Scheme) -> nnx.Module:
        return Waves(self.base, dim)


class Waves(nnx.Module):
    """The vectors of `Sinusoidal`."""

    def __init__(self, base: float, dim: int):
        self.base, self.dim = base, dim

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        frequency = self.base ** (-jnp.arange(0, self.dim, 2, dtype=jnp.float32) / self.dim)
        angle = positions[..., None].astype(jnp.float32) * frequency
        waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)
        return waves.reshape(*positions.shape, -1)[..., : self.dim]
