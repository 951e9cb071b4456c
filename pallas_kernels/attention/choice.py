"""The one signature of attention, and the choice of who computes it."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size.

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels.attention.mask import CAUSAL, Mask
from jscale.pallas_kernels.attention.reference import reference

Tokens = Int[Array, "B T"]
Keys = Int[Array, "B S"]

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"reference": reference}


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask = CAUSAL,
    *,
    positions: tuple[Tokens, Keys] | None = None,
    segments: tuple[Tokens, Keys] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention, softmax(q kᵀ / √H) v, softmax in float32.

    `positions` are those of the queries and of the keys (by default 0, 1, … aligned at the end);
    `segments` likewise: a query sees keys of its own segment only. A query that may see no key
    gives 0. Source: Ainslie et al. 2023, arXiv 2305.13245.

    Raises:
        ConfigError: heads that are not a multiple of the key/value heads, or an unknown
            implementation.
    """
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    if N % K:
        raise ConfigError(f"attention: {N} query heads are not a multiple of {K} key/value heads")
    if positions is None:
        keys = jnp.broadcast_to(jnp.arange(S), (B, S))
        positions = keys[:, S - T :], keys
    allowed = mask.allows(*positions)
    if segments is not None:
        allowed &= segments[0][:, :, None] == segments[1][:, None, :]
    return choose(implementation)(q, k, v, allowed)


def choose(implementation: str | None) -> Callable[..., Array]:
    name = implementation or "reference"
    if name not in IMPLEMENTATIONS:
        raise ConfigError(
            f"no implementation {name!r} of attention; {did_you_mean(name, IMPLEMENTATIONS)}"
        )
    return IMPLEMENTATIONS[name]
