"""How weights begin: schemes by name, and matrices and biases with named dimensions.

`gain` multiplies what residual schemes scale (DeepNorm, Sub-LN): values, outputs, feed-forwards.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jscale.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Fans:
    """How many products make one output of a matrix, and how many outputs an input has."""

    into: int
    out: int


@dataclass(frozen=True)
class Scheme:
    """What matrices, biases and tables begin with.

    Attributes:
        uniform: matrices and biases are uniform in ±gain/√fan_in, as PyTorch's linear layers are.
        lecun: matrices are normal with deviation gain/√fan_in, biases 0 (LeCun et al. 1998).
        deviation: otherwise matrices are normal with gain times this; None: Xavier's
            √(2 / (fan_in + fan_out)), and biases are 0.
        tokens: the deviation of embeddings; None: 1/√dim.
        places: the deviation of learned positions and position biases; None: 1/√dim.
        head: the deviation of an output matrix; None: 1/√dim.
    """

    uniform: bool = False
    deviation: float | None = None
    tokens: float | None = None
    places: float | None = None
    head: float | None = None
    lecun: bool = False

    def matrix(
        self, key: PRNGKeyArray, shape: tuple[int, ...], fans: Fans, gain: float = 1.0
    ) -> Float[Array, "..."]:
        """The first values of a matrix."""
        if self.uniform:
            bound = gain * fans.into**-0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        xavier = math.sqrt(2 / (fans.into + fans.out))
        deviation = xavier if self.deviation is None else self.deviation
        deviation = fans.into**-0.5 if self.lecun else deviation
        return gain * deviation * jax.random.normal(key, shape)

    def bias(
        self, key: PRNGKeyArray, shape: tuple[int, ...], fans: Fans, gain: float = 1.0
    ) -> Float[Array, "..."]:
        """The first values of a bias."""
        return self.matrix(key, shape, fans, gain) if self.uniform else jnp.zeros(shape)


SCHEMES = {
    # What TorchScale 0.3.0 has: PyTorch's own for linear layers and positions.
    "torchscale": Scheme(uniform=True, places=1.0),
    # Xavier with a gain, as DeepNet (arXiv 2203.00555) and Magneto (arXiv 2210.06423) prescribe.
    "paper": Scheme(),
    # BERT's (arXiv 1810.04805).
    "bert": Scheme(deviation=0.02, tokens=0.02, places=0.02, head=0.02),
}


def scheme_of(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SCHEMES:
        raise ConfigError(f"no initialisation {name!r}; {did_you_mean(name, SCHEMES)}")
    return SCHEMES[name]


def named(value: Float[Array, "..."], *axes: str | None) -> nnx.Param:
    """A parameter with named dimensions."""
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


def table(rngs: nnx.Rngs, deviation: float | None, dim: int, **shape: int) -> nnx.Param:
    """A normal table; a deviation of None is 1/√dim."""
    scale = dim**-0.5 if deviation is None else deviation
    return named(scale * jax.random.normal(rngs.params(), tuple(shape.values())), *shape)
