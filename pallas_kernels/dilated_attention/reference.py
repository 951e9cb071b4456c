"""Dilated attention in plain JAX from masks written out: the definition of right."""

# B batch, T length, N heads, K key/value heads, H head size, V value size, P patterns.

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.pallas_kernels.attention import Mask, Scores
from jscale.pallas_kernels.dilated_attention.pattern import Pattern
from jscale.pallas_kernels.dilated_attention.share import WHOLE, Share

LEAST = -1e30  # stands for −∞, without its not-a-numbers


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask,
    patterns: Sequence[Pattern],
    scores: Scores,
    segments: Int[Array, "B T"] | None,
    share: Share = WHOLE,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """Softmax attention within each pattern, and the softmax of their log Σ exp to mix them.

    Of whole rows and all heads only.
    """
    (T, N, H), K = q.shape[1:], k.shape[2]
    q32, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, N // K, 2) for x in (k, v))
    logits = jnp.einsum("btnh,bsnh->bnts", q32, k) * scores.of(H)
    if scores.cap is not None:
        logits = scores.cap * jnp.tanh(logits / scores.cap)
    place = jnp.arange(T)
    if scores.slopes is not None:
        away = jnp.abs(place[:, None] - place)
        logits -= jax.lax.stop_gradient(scores.slopes)[:, None, None] * away
    may = mask.allows(place[None], place[None])[:, None]
    if segments is not None:
        may &= (segments[:, :, None] == segments[:, None, :])[:, None]
    outs, sums = [], []
    for pattern in patterns:
        seen = may & pairs(pattern, T, N)
        some = seen.any(-1)
        # Two selections, so that no gradient meets an infinity.
        least = jax.nn.logsumexp(jnp.where(seen | ~some[..., None], logits, -jnp.inf), -1)
        lse = jnp.where(some, least, LEAST)
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - least[..., None], 0.0)), 0.0)
        outs.append(jnp.einsum("bnts,bsnv->btnv", weights, v))
        sums.append(lse.swapaxes(1, 2))
    lse = jnp.stack(sums)
    mixed = (jax.nn.softmax(lse, 0)[..., None] * jnp.stack(outs)).sum(0)
    total = jax.nn.logsumexp(lse, 0)
    return mixed.astype(q.dtype), total


def pairs(pattern: Pattern, length: int, heads: int) -> Bool[Array, "N T T"]:
    """Which token of each head is of the same segment as another, and both are taken."""
    place = jnp.arange(length)
    together = place[:, None] // pattern.segment == place // pattern.segment
    offset = (jnp.arange(heads) % pattern.dilation)[:, None]
    taken = (place % pattern.segment) % pattern.dilation == offset
    return together & taken[:, :, None] & taken[:, None, :]
