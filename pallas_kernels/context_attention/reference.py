"""Attention on the gathered whole, of which each device keeps its part: the definition of right."""

# B batch, T a device's queries, S a device's keys, N heads, K key/value heads, H head size,
# V value size.

from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention import PLAIN, Mask, Places, Scores, attention_with_lse
from jscale.pallas_kernels.context_attention.parts import (
    UNPLACED,
    gathered,
    gathered_places,
)


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    axes: tuple[str, ...],
    *,
    scores: Scores = PLAIN,
    places: Places = UNPLACED,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """`context_attention_with_lse` by one device's attention to everything."""
    T, first = q.shape[1], lax.axis_index(axes) * q.shape[1]
    places = gathered_places(places, axes)
    q, k, v = (gathered(x, axes) for x in (q, k, v))
    found = attention_with_lse(q, k, v, mask, scores, places, "reference")
    out, lse = (lax.dynamic_slice_in_dim(x, first, T, 1) for x in found)
    return out, lse
