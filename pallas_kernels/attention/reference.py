"""Attention in plain JAX: the definition of right."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.scores import Scores

LEAST = -1e30  # stands for −∞, without its not-a-numbers


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """softmax(scores) v over the keys that the mask shows, and the scores' log Σ exp, in float32.

    A query that may see nothing gives 0, and a log Σ exp of −1e30. Sinks are not this function's.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    grouped = q.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, N, T, S) * scores.of(H)
    if scores.cap is not None:
        logits = scores.cap * jnp.tanh(logits / scores.cap)
    if scores.bias is not None:
        logits += scores.bias
    queries, keys = places.whole(B, T, S)
    if scores.slopes is not None:
        away = jnp.abs(queries[:, :, None] - keys[:, None, :])[:, None]
        logits -= jax.lax.stop_gradient(scores.slopes)[:, None, None] * away.astype(jnp.float32)
    seen = mask.allows(queries, keys)
    if places.segments is not None:
        seen &= places.segments[0][:, :, None] == places.segments[1][:, None, :]
    seen = seen[:, None]
    # Masked before the exponential, not only after: it may overflow where nothing is seen, and
    # infinity times the gradient 0 is not a number.
    logits = jnp.where(seen, logits, LEAST)
    peak = jax.lax.stop_gradient(logits.max(-1, keepdims=True, initial=LEAST))
    weights = jnp.where(seen, jnp.exp(logits - peak), 0.0)
    total = weights.sum(-1, keepdims=True)
    some = jnp.where(total == 0, 1.0, total)
    probs = (weights / some).astype(v.dtype).reshape(B, K, N // K, T, S)
    out = jnp.einsum("bkgts,bskh->btkgh", probs, v).reshape(B, T, N, v.shape[-1])
    lse = jnp.where(total == 0, LEAST, peak + jnp.log(some))[..., 0]
    return out, lse.swapaxes(1, 2)
