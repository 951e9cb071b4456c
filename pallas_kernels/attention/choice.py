"""The one signature of attention, and the choice of who computes it."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size.

import logging
from collections.abc import Callable
from functools import lru_cache

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels.attention.mask import CAUSAL, Mask
from jscale.pallas_kernels.attention.reference import reference
from jscale.pallas_kernels.attention.xla import blockwise

Tokens = Int[Array, "B T"]
Keys = Int[Array, "B S"]


def dense(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    positions: tuple[Tokens, Keys] | None,
    segments: tuple[Tokens, Keys] | None,
) -> Float[Array, "B T N H"]:
    """The reference, under the mask written out for every query and key."""
    (B, T), S = q.shape[:2], k.shape[1]
    if positions is None:
        keys = jnp.broadcast_to(jnp.arange(S), (B, S))
        positions = keys[:, S - T :], keys
    allowed = mask.allows(*positions)
    if segments is not None:
        allowed &= segments[0][:, :, None] == segments[1][:, None, :]
    return reference(q, k, v, allowed)


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"reference": dense, "xla": blockwise}
LONG = 128  # queries from which tiles won, forward and backward, on CPU


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

    `positions` are those of the queries and of the keys; by default 0, 1, … aligned at the end,
    and then what the mask hides costs no time. `segments` likewise: a query sees keys of its own
    segment only. A query that may see no key gives 0. `implementation=None` chooses by shape, and
    logs what and why. Source: Ainslie et al. 2023, arXiv 2305.13245.

    Raises:
        ConfigError: heads that are not a multiple of the key/value heads, more queries than keys
            without positions, or an unknown implementation.
    """
    (_, T, N, _), (S, K) = q.shape, k.shape[1:3]
    if N % K:
        raise ConfigError(f"attention: {N} query heads are not a multiple of {K} key/value heads")
    if positions is None and T > S:
        raise ConfigError(f"attention: {T} queries and {S} keys cannot be aligned: give positions")
    name = implementation or choose(T, S)
    if name not in IMPLEMENTATIONS:
        raise ConfigError(
            f"no implementation {name!r} of attention; {did_you_mean(name, IMPLEMENTATIONS)}"
        )
    return IMPLEMENTATIONS[name](q, k, v, mask, positions, segments)


@lru_cache(maxsize=256)  # so that each choice is logged once
def choose(queries: int, keys: int) -> str:
    """The implementation for so many queries and keys."""
    tiled = queries >= LONG
    why = "so many queries are" if tiled else f"fewer than {LONG} queries are not"
    name = "xla" if tiled else "reference"
    logging.getLogger(__name__).info(
        "attention of %d queries and %d keys by %r: %s worth tiles", queries, keys, name, why
    )
    return name
