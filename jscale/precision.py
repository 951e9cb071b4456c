"""In which dtype weights are kept, activations computed, gradients summed."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from jscale.errors import ConfigError, did_you_mean

FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Precision:
    """dtypes by name: float32 or bfloat16, and float16 for `compute`.

    Weights are kept in `store`, activations are of `compute`, and gradients are computed, summed
    over microbatches and reduced over devices in `reduce`. With compute="float16" the loss is
    scaled, the scale found by doubling and halving (Micikevicius et al. 2017, arXiv 1710.03740).

    Raises:
        ConfigError: a name that is none of these.
    """

    store: str = "float32"  # of weights and moments
    compute: str = "float32"  # of activations
    reduce: str = "float32"  # of gradients and their sums

    def __post_init__(self) -> None:
        # The range of float16 is too small for weights, moments and sums of gradients.
        choices = {"store": FLOATS[:2], "compute": FLOATS, "reduce": FLOATS[:2]}
        for field, allowed in choices.items():
            name = getattr(self, field)
            if name not in allowed:
                raise ConfigError(
                    f"precision.{field} cannot be {name!r}; {did_you_mean(name, allowed)}"
                )

    @property
    def scaled(self) -> bool:
        """Whether the loss must be scaled for gradients not to vanish."""
        return self.compute == "float16"


def cast(tree: PyTree[Array], dtype: DTypeLike) -> PyTree[Array]:
    """The floating-point arrays of a tree in another dtype, the others as they are."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
