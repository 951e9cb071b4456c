"""A mixture of experts with every expert on every token: what all dispatching must agree with."""

# T tokens, C choices per token, D the size of a row, F that of a result.

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference(
    x: Float[Array, "T D"],
    choices: Int[Array, "T C"],
    weights: Float[Array, "T C"],
    experts: int,
    run: Callable[[int, Array], Array],
) -> Float[Array, "T F"]:
    """Σ_c weights[t, c] · run(choices[t, c], x[t]), summed in float32; `run` takes all rows."""
    out: Array = jnp.float32(0)
    for e in range(experts):
        share = (weights.astype(jnp.float32) * (choices == e)).sum(1)
        out = out + share[:, None] * run(e, x).astype(jnp.float32)
    return out.astype(x.dtype)
