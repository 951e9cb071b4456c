"""Attention in plain JAX: the definition of right."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size.

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    allowed: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q kᵀ / √H) v in float32 over the allowed keys; 0 where a query may see none."""
    B, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    seen = allowed[:, None, None]
    # Masked before the exponential, not only after: it may overflow where nothing is seen, and
    # infinity times the gradient 0 is not a number.
    logits = jnp.where(seen, logits * H**-0.5, -1e30)
    weights = jnp.where(seen, jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    total = weights.sum(-1, keepdims=True)
    probs = (weights / jnp.where(total == 0, 1.0, total)).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", probs, v).reshape(B, T, N, H)
