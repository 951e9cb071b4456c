"""Linear cross-entropy in plain XLA, some tokens at a time: logits are made, used and forgotten.

A gradient needs the logits a second time. Where it is known beforehand up to a factor (the mean of
weighted losses), it is made with them the first time and only multiplied later (Hsu et al. 2024,
arXiv 2410.10989); whether it is the one asked for is looked at then, and if not, logits are made
again from the saved normalizer.
"""

# M tokens, m of a chunk, D model size, V vocabulary (of this device, where it is split).

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jscale.pallas_kernels.linear_cross_entropy.chunks import gradients, over_chunks, product, pull
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan, capped, joined, slope

Sides = Any  # an array or None; a pair of arrays: what a custom rule takes and gives


def chunked(
    plan: Plan,
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    targets: Any,
    weights: Float[Array, "M"] | None,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Log-probabilities and normalizers, `plan.tokens` tokens at a time."""
    return _cross_entropy(plan, hidden, kernel, targets, weights)


def scores(plan: Plan, hidden: Array, kernel: Array) -> Float[Array, "m V"]:
    """The logits of some tokens, in float32."""
    return capped(plan, product(hidden, kernel.astype(hidden.dtype)))


def measure(plan: Plan, logits: Array, targets: Array) -> tuple[Array, Array]:
    """Log-probability of the (smoothed) targets and normalizer, over the whole vocabulary."""
    V = logits.shape[-1]
    peak = logits.max(-1)
    normalizer = peak + jnp.log(jnp.exp(logits - peak[:, None]).sum(-1))
    at = plan.place(targets, V)
    own = jnp.take_along_axis(logits, jnp.maximum(at, 0)[:, None], -1)[:, 0]
    own = jnp.where(at >= 0, own, 0.0)
    return joined(plan, V, normalizer, own, logits.sum(-1) if plan.smoothing else None)


def slopes(
    plan: Plan, logits: Array, targets: Array, normalizer: Array, by: tuple[Array, Array]
) -> Float[Array, "m V"]:
    """The gradient of the raw logits, given those of the log-probability and of the normalizer."""
    V = logits.shape[-1]
    hit = jnp.arange(V) == plan.place(targets, V)[:, None]
    columns = by[0][:, None], by[1][:, None]
    return slope(plan, plan.spread(V), logits, hit, normalizer[:, None], columns)


def _plain(plan: Plan, hidden: Array, kernel: Array, targets: Array, weights: Sides) -> Sides:
    def body(_: Any, chunk: tuple[Array, ...]) -> tuple[Any, Sides]:
        return _, measure(plan, scores(plan, chunk[0], kernel), chunk[1])

    return over_chunks(plan.tokens, body, jnp.zeros(()), hidden, targets)[1]


def _forward(
    plan: Plan, hidden: Array, kernel: Array, targets: Array, weights: Sides
) -> tuple[Sides, tuple[Any, ...]]:
    if weights is None:
        out = _plain(plan, hidden, kernel, targets, weights)
        return out, (hidden, kernel, targets, None, out[1], None)

    def body(dw: Array, chunk: tuple[Array, ...]) -> tuple[Array, Sides]:
        hidden, targets, weights = chunk
        logits = scores(plan, hidden, kernel)
        logp, normalizer = measure(plan, logits, targets)
        by = expected_by(plan, weights, normalizer)
        dh, more = pull(hidden, kernel, slopes(plan, logits, targets, normalizer, by))
        return dw + more, (logp, normalizer, dh)

    start = jnp.zeros(kernel.shape, jnp.float32)
    rows = hidden, targets, weights.astype(jnp.float32)
    dw, (logp, normalizer, dh) = over_chunks(plan.tokens, body, start, *rows)
    ready = dh, dw
    return (logp, normalizer), (hidden, kernel, targets, weights, normalizer, ready)


def expected_by(plan: Plan, weights: Array, normalizer: Array) -> tuple[Array, Array]:
    """The gradients of log-probability and normalizer that are expected, but for a factor."""
    return -weights, 2 * plan.z_loss * weights * normalizer


def _backward(
    plan: Plan, saved: tuple[Any, ...], by: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    hidden, kernel, targets, weights, normalizer, ready = saved
    if plan.split:  # what comes back to one device of several is its share
        by = lax.psum(by, plan.split)

    def again() -> tuple[Array, Array]:
        def made(hidden: Array, targets: Array, normalizer: Array, *by: Array) -> Array:
            return slopes(plan, scores(plan, hidden, kernel), targets, normalizer, (by[0], by[1]))

        dh, dw = gradients(plan.tokens, made, hidden, kernel, targets, normalizer, *by)
        return dh, dw.astype(kernel.dtype)

    if ready is None:
        dh, dw = again()
    else:
        wanted = expected_by(plan, weights.astype(jnp.float32), normalizer)
        factor, same = ratio(by, wanted)
        like = hidden.dtype, kernel.dtype
        scaled = lambda: tuple((x * factor).astype(d) for x, d in zip(ready, like, strict=True))
        dh, dw = lax.cond(same, scaled, again)
    return dh, dw, None, None


def ratio(
    found: tuple[Array, Array], wanted: tuple[Array, Array]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """`factor`, and whether `found` is `factor` · `wanted` to rounding."""
    most = jnp.abs(wanted[0]).argmax()
    factor = found[0][most] / jnp.where(wanted[0][most] == 0, 1.0, wanted[0][most])
    near = lambda a, b: (jnp.abs(a - factor * b) <= 2e-6 * jnp.abs(factor * b)).all()
    return factor, near(found[0], wanted[0]) & near(found[1], wanted[1])


_cross_entropy = jax.custom_vjp(_plain, nondiff_argnums=(0,))
_cross_entropy.defvjp(_forward, _backward)
