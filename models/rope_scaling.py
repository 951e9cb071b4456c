"""How rotary frequencies are stretched, so that a network reads rows longer than those of training.

Each scaling maps (base, R, reach) to the frequencies of R/2 pairs, in radians for a position, and a
factor of what is rotated. `reach` is how many positions a row has: some depend on it, and then keys
in a cache keep the rotation that they were given.
"""

# R rotated numbers of a head.

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError

Frequencies = tuple[Float[Array, " half"], float]


def powers(base: float | Float[Array, ""], size: int) -> Float[Array, " half"]:
    """base^(-2i/R): the frequencies as they are without scaling."""
    return base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)


@runtime_checkable
class RopeScaling(Protocol):
    """A way to stretch rotary frequencies."""

    def __call__(self, base: float, size: int, reach: Int[Array, ""]) -> Frequencies: ...


def _check(scaling: Any, *names: str) -> None:
    """Raises ConfigError unless each of these is above 0."""
    for name in names:
        if not getattr(scaling, name) > 0:
            found = getattr(scaling, name)
            raise ConfigError(f"{type(scaling).__name__}.{name} must be above 0, not {found}")


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor. Source: Chen et al. 2023, arXiv 2306.15595.

    Raises:
        ConfigError: the factor is not above 0.
    """

    factor: float  # how many times longer rows may be

    def __post_init__(self) -> None:
        _check(self, "factor")

    def __call__(self, base: float, size: int, reach: Int[Array, ""]) -> Frequencies:
        return powers(base, size) / self.factor, 1.0


@dataclass(frozen=True)
class DynamicScaling:
    """A base that grows once a row is longer than those of training ("dynamic NTK").

    Source: the transformers package, rope_type "dynamic"; Peng et al. 2023, arXiv 2309.00071.

    Raises:
        ConfigError: a number is not above 0.
    """

    factor: float  # how many times longer rows may be
    original: int  # tokens of a row in training

    def __post_init__(self) -> None:
        _check(self, "factor", "original")

    def __call__(self, base: float, size: int, reach: Int[Array, ""]) -> Frequencies:
        longer = jnp.maximum(reach, self.original) / self.original
        grown = (self.factor * longer - (self.factor - 1)) ** (size / (size - 2))
        return powers(base * grown, size), 1.0


@dataclass(frozen=True)
class YaRN:
    """Slow pairs stretched, fast ones kept, a ramp between. Source: Peng et al. 2023, 2309.00071.

    Raises:
        ConfigError: a number is not above 0.
    """

    factor: float  # how many times longer rows may be
    original: int  # tokens of a row in training
    fast: float = 32.0  # pairs that turn so often in a row of training are kept
    slow: float = 1.0  # those that turn so often, or less, are stretched
    attention: float | None = None  # factor of what is rotated; None: 0.1 · ln(factor) + 1
    truncate: bool = True  # whether the ramp begins and ends at whole pairs

    def __post_init__(self) -> None:
        _check(self, "factor", "original", "fast", "slow")

    def __call__(self, base: float, size: int, reach: Int[Array, ""]) -> Frequencies:
        first, last = self._ramp(base, size)
        # A ramp of no width is a step.
        width = max(last - first, 0.001)
        stretched = np.clip((np.arange(size // 2, dtype=np.float32) - first) / width, 0, 1)
        plain = powers(base, size)
        return plain * (1 - stretched) + plain / self.factor * stretched, self._scale()

    def _ramp(self, base: float, size: int) -> tuple[float, float]:
        """The pairs at which the ramp begins and ends."""
        pair = lambda turns: (
            size * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(base))
        )
        first, last = pair(self.fast), pair(self.slow)
        if self.truncate:
            first, last = float(math.floor(first)), float(math.ceil(last))
        return max(first, 0.0), min(last, size - 1.0)

    def _scale(self) -> float:
        if self.attention is not None:
            return self.attention
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Waves longer than a share of a row of training stretched, with a ramp.

    Source: Grattafiori et al. 2024, arXiv 2407.21783; the released code of Llama 3.1.

    Raises:
        ConfigError: a number is not above 0, or `high` is not above `low`.
    """

    factor: float  # how many times longer rows may be
    original: int = 8192  # tokens of a row in training
    low: float = 1.0  # waves longer than original / low are stretched
    high: float = 4.0  # waves shorter than original / high are kept

    def __post_init__(self) -> None:
        _check(self, "factor", "original", "low", "high")
        if self.high <= self.low:
            raise ConfigError(f"Llama3Scaling.high={self.high} must be above low={self.low}")

    def __call__(self, base: float, size: int, reach: Int[Array, ""]) -> Frequencies:
        plain = powers(base, size)
        turns = self.original * plain / (2 * math.pi)  # of each pair in a row of training
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return plain * kept + plain / self.factor * (1 - kept), 1.0


@dataclass(frozen=True)
class LongRoPE:
    """A factor for each pair, searched: for rows as long as in training, and for longer ones.

    Source: Ding et al. 2024, arXiv 2402.13753.

    Raises:
        ConfigError: a number is not above 0, or there are not as many short factors as long ones.
    """

    short: tuple[float, ...]  # a factor for each pair, in rows as long as in training
    long: tuple[float, ...]  # the same in longer rows
    original: int  # tokens of a row in training
    attention: float = 1.0  # factor of what is rotated

    def __post_init__(self) -> None:
        _check(self, "original", "attention")
        if len(self.short) != len(self.long):
            raise ConfigError(
                f"LongRoPE has {len(self.short)} short factors and {len(self.long)} long ones"
            )
        if not min((*self.short, *self.long), default=0.0) > 0:
            raise ConfigError("the factors of LongRoPE must be above 0, one for each pair")

    def __call__(self, base: float, size: int, reach: Int[Array, ""]) -> Frequencies:
        if len(self.short) != size // 2:
            raise ConfigError(
                f"LongRoPE has {len(self.short)} factors, and {size} rotated numbers of a head are"
                f" {size // 2} pairs"
            )
        short, long = (jnp.asarray(factors, jnp.float32) for factors in (self.short, self.long))
        return powers(base, size) / jnp.where(reach > self.original, long, short), self.attention
