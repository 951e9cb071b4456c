"""Attention with all scores at once, as the reference's, and a gradient of its own.

JAX's derivative of the reference keeps some six arrays of T × S for the way back. This one keeps
the softmax's weights alone, with queries, keys and values laid out as its products read them.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.
# R queries of the heads that share a key/value head, N / K · T of them.

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import ALIGNED, Places
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.scores import Scores


class Form(NamedTuple):
    """What is known of a call while tracing: what scores become, and how many heads there are."""

    scale: float
    cap: float | None
    heads: int


def dense(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    scores: Scores,
    places: Places,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`, of which it keeps less for the backward pass."""
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    # Positions have a first axis of 1 where they are the same for all rows.
    queries, keys = places.positions or ALIGNED.whole(1, T, S)
    seen = mask.allows(queries, keys)
    if places.segments is not None:
        seen &= places.segments[0][:, :, None] == places.segments[1][:, None, :]
    less = None
    if scores.slopes is not None:
        away = jnp.abs(queries[:, :, None] - keys[:, None, :])[:, None]
        less = jax.lax.stop_gradient(scores.slopes)[:, None, None] * away.astype(jnp.float32)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    form = Form(scores.of(H), scores.cap, N)
    rows = q.reshape(B, K, N // K * T, H)
    out, lse = _attend(form, rows, k, v, scores.bias, (seen[:, None], less))
    return out.reshape(B, N, T, V).swapaxes(1, 2), lse.swapaxes(1, 2)


def logits(
    form: Form, q: Float[Array, "B K R H"], k: Float[Array, "B K S H"], bias: Array | None
) -> Float[Array, "B N T S"]:
    """The scores, of which some will be hidden, in float32."""
    (B, K, R, _), S, N = q.shape, k.shape[2], form.heads
    made = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
    made = made.reshape(B, N, K * R // N, S) * form.scale
    if form.cap is not None:
        made = form.cap * jnp.tanh(made / form.cap)
    return made if bias is None else made + bias


def mix(probs: Float[Array, "B N T S"], v: Float[Array, "B K S V"]) -> Float[Array, "B K R V"]:
    """The values in the proportions of the softmax."""
    (B, N, T, S), K = probs.shape, v.shape[1]
    return jnp.einsum("bkrs,bksv->bkrv", probs.astype(v.dtype).reshape(B, K, N // K * T, S), v)


Hidden = tuple[Array, Array | None]  # who sees whom, and what ALiBi takes from the scores


def forward(
    form: Form, q: Array, k: Array, v: Array, bias: Array | None, hidden: Hidden
) -> tuple[tuple[Float[Array, "B K R V"], Float[Array, "B N T"]], tuple[Any, ...]]:
    """The result and the log Σ exp, and what the backward pass needs."""
    made, (seen, less) = logits(form, q, k, bias), hidden
    # Masked before the exponential, not only after: it may overflow where nothing is seen.
    made = jnp.where(seen, made if less is None else made - less, LEAST)
    peak = made.max(-1, keepdims=True, initial=LEAST)
    weights = jnp.where(seen, jnp.exp(made - peak), 0.0)
    total = weights.sum(-1, keepdims=True)
    some = jnp.where(total == 0, 1.0, total)
    probs = weights / some
    lse = jnp.where(total == 0, LEAST, peak + jnp.log(some))[..., 0]
    return (mix(probs, v), lse), (q, k, v, bias, probs)


def backward(
    form: Form, saved: tuple[Any, ...], slopes: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array | None, None]:
    """The gradients of q, k, v and the bias."""
    q, k, v, bias, probs = saved
    g, more = slopes
    by_probs, dv = jax.vjp(mix, probs, v)[1](g)
    inner = (probs * by_probs).sum(-1, keepdims=True) - more[..., None]
    # Where a query sees no key its weight is 0, and so is the slope.
    slope = probs * (by_probs - inner)
    dq, dk, dbias = jax.vjp(partial(logits, form), q, k, bias)[1](slope)
    return dq, dk, dv, dbias, None


_attend = jax.custom_vjp(
    lambda form, q, k, v, bias, hidden: forward(form, q, k, v, bias, hidden)[0],
    nondiff_argnums=(0,),
)
_attend.defvjp(forward, backward)
