"""The one signature of attention over a split sequence."""

# B batch, T a device's queries, S a device's keys, N heads, K key/value heads, H head size,
# V value size.

import jax
from jax import lax
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import PLAIN, Mask, Places, Scores
from jscale.pallas_kernels.context_attention.all_to_all import AllToAll
from jscale.pallas_kernels.context_attention.gather import Gather
from jscale.pallas_kernels.context_attention.parts import UNPLACED
from jscale.pallas_kernels.context_attention.ring import Ring

Exchange = Gather | Ring | AllToAll


def context_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    exchange: Exchange,
    *,
    scores: Scores = PLAIN,
    places: Places = UNPLACED,
    implementation: str | None = None,
) -> Float[Array, "B T N V"]:
    """`attention` inside `shard_map`, over a sequence that is split over `exchange.axes`.

    Each device gives its own part of q, k and v and gets its queries' results; gradients are exact.
    `places` are those of the device's own queries and keys. Positions of None say that parts follow
    each other in the order of the axes. `implementation` attends to what a device holds.

    Raises:
        ConfigError: an axis that no `shard_map` around has, a bias, heads that do not divide, parts
            of unlike length without positions, and whatever `attention` refuses.
    """
    found = context_attention_with_lse(
        q, k, v, mask, exchange, scores=scores, places=places, implementation=implementation
    )
    return found[0]


def context_attention_with_lse(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    exchange: Exchange,
    *,
    scores: Scores = PLAIN,
    places: Places = UNPLACED,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """`context_attention`, and the log Σ exp of each query's scores; both have gradients."""
    _check(q, k, scores, places, exchange)
    return exchange.attend(q, k, v, mask, scores, places, implementation)


def _check(q: Array, k: Array, scores: Scores, places: Places, exchange: Exchange) -> None:
    for axis in exchange.axes:
        try:
            lax.axis_size(axis)
        except NameError as unbound:
            around = sorted(jax.sharding.get_abstract_mesh().manual_axes)
            raise ConfigError(
                f"context_attention: {axis!r} is not a mesh axis of a shard_map around this call,"
                f" of which there are {around or 'none'}"
            ) from unbound
    if scores.bias is not None:
        raise ConfigError(
            "context_attention: scores.bias has no parts that could be exchanged: use slopes, or"
            " attention on a sequence that is not split"
        )
    T, S = q.shape[1], k.shape[1]
    if places.positions is None and T != S:
        raise ConfigError(
            f"context_attention: {T} queries and {S} keys on a device do not follow each other in"
            " one order: give positions"
        )
