"""Activations by name, each computed in float32 and returned in the dtype it was given."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.errors import ConfigError, did_you_mean

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, arXiv 2109.08668
    "gelu": partial(jax.nn.gelu, approximate=False),  # x Φ(x), by the error function
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # x Φ(x), nearly: CLIP's
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "identity": lambda x: x,
}


def check_activation(name: str) -> str:
    """The name of an activation, if there is such a one.

    Raises:
        ConfigError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"no activation {name!r}; {did_you_mean(name, ACTIVATIONS)}")
    return name


def activate(name: str, x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """The activation of that name; raises as `check_activation`."""
    return ACTIVATIONS[check_activation(name)](x.astype(jnp.float32)).astype(x.dtype)
