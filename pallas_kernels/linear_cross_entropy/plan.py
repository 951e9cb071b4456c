"""What linear cross-entropy decides while tracing, and the maths that implementations share."""

# M tokens, m some of them, V vocabulary (of this device, where it is split).

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Plan(NamedTuple):
    """Tokens at a time where logits or their gradient are held, cap, z-loss, mesh axes that split
    V, and how much of a target is spread over all V."""

    tokens: int
    cap: float | None
    z_loss: float
    split: tuple[str, ...]
    smoothing: float = 0.0

    def vocabulary(self, own: int) -> int:
        """The whole vocabulary, of which this device has `own`."""
        return own * (lax.axis_size(self.split) if self.split else 1)

    def place(self, targets: Array, own: int) -> Int[Array, "M"]:
        """Where the targets stand in this device's part of the vocabulary; −1 for those outside."""
        at = targets - (lax.axis_index(self.split) * own if self.split else 0)
        return jnp.where((at >= 0) & (at < own), at, -1)

    def spread(self, own: int) -> float:
        """What smoothing gives to each of the vocabulary."""
        return self.smoothing / self.vocabulary(own)


def capped(plan: Plan, logits: Any) -> Any:
    """Logits as they count."""
    return logits if plan.cap is None else plan.cap * jnp.tanh(logits / plan.cap)


def joined(
    plan: Plan,
    own: int,
    normalizer: Float[Array, "M"],
    logit: Float[Array, "M"],
    total: Float[Array, "M"] | None,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Log-probability of the (smoothed) targets and normalizer, over the whole vocabulary.

    Given are log Σ exp over this device's part, which has `own` of it, the target's logit where it
    is of this part, else 0, and only for smoothing the sum of the part's logits.
    """
    if total is not None:
        logit = (1 - plan.smoothing) * logit + plan.spread(own) * total
    if plan.split:
        peak = lax.pmax(normalizer, plan.split)
        sums, logit = lax.psum((jnp.exp(normalizer - peak), logit), plan.split)
        normalizer = peak + jnp.log(sums)
    return logit - normalizer, normalizer


def slope(
    plan: Plan, spread: float, logits: Any, hit: Any, normalizer: Any, by: tuple[Any, Any]
) -> Any:
    """The gradient of raw logits, given those of the log-probability and of the normalizer.

    `logits` are capped; `hit` says where the target is; of each token the rest is a column.
    """
    out = jnp.exp(logits - normalizer) * (by[1] - by[0])
    if plan.smoothing:
        out = out + jnp.where(hit, 1 - plan.smoothing + spread, spread) * by[0]
    else:
        out = out + jnp.where(hit, by[0], 0.0)
    return out if plan.cap is None else out * (1 - jnp.square(logits / plan.cap))
