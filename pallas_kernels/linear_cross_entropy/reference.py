"""Log-probabilities from whole logits in plain JAX: the definition of right."""

# M tokens, D model size, V vocabulary.

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference(
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "M"],
    cap: float | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """log softmax(hidden kernel)[target] and log Σ exp, in float32.

    With a `cap` c, logits are c · tanh(logits / c). With `smoothing` ε, the log-probability is the
    mean under (1 − ε) · target + ε / V.
    """
    logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    normalizer = jax.nn.logsumexp(logits, -1)
    hit = jnp.arange(logits.shape[-1]) == targets[:, None]
    own = jnp.where(hit, logits, 0.0).sum(-1)
    return (1 - smoothing) * own + smoothing * logits.mean(-1) - normalizer, normalizer
