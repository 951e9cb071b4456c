"""What kernels of every operation do with a block: its product with another, its length."""

from typing import Any

import jax.numpy as jnp
from jax import lax


def product(a: Any, b: Any, axes: tuple[int, int] = (1, 0)) -> Any:
    """Sums over an axis of each, in float32; float32 itself is not rounded to a shorter format."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = ((axes[0],), (axes[1],)), ((), ())
    return lax.dot_general(a, b, dims, precision=exact, preferred_element_type=jnp.float32)


def up(length: int, step: int) -> int:
    """The length, filled up to whole steps."""
    return -(-length // step) * step
