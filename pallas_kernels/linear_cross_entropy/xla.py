"""Linear cross-entropy in plain XLA, some tokens at a time: logits are made, used and forgotten.

A gradient needs the logits a second time. Where it is known beforehand up to a factor (the mean of
weighted losses), it is made with them the first time and only multiplied later (Hsu et al. 2024,
arXiv 2410.10989); whether it is the one asked for is looked at then, and if not, logits are made
again from the saved normalizer.
"""

# M tokens, D model size, V vocabulary (of this device, where it is split).

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Sides = Any  # an array or None; a pair of arrays: what a custom rule takes and gives


class Plan(NamedTuple):
    """What is decided while tracing: tokens at a time, cap, z-loss, mesh axes that split V, and how
    much of a target is spread over all V."""

    tokens: int
    cap: float | None
    z_loss: float
    split: tuple[str, ...]
    smoothing: float = 0.0

    def vocabulary(self, own: int) -> int:
        """The whole vocabulary, of which this device has `own`."""
        return own * (lax.axis_size(self.split) if self.split else 1)


product = partial(jnp.matmul, preferred_element_type=jnp.float32)


def chunked(
    plan: Plan,
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"] | None,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Log-probabilities and normalizers, `plan.tokens` tokens at a time."""
    M = hidden.shape[0]
    if plan.tokens >= M:
        return _cross_entropy(plan._replace(tokens=M), hidden, kernel, targets, weights)
    # Nearly equal chunks, the last filled up with tokens of weight 0.
    count = -(-M // plan.tokens)
    each = -(-M // count)
    more = count * each - M
    grow = lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) if more else x
    hidden, targets = grow(hidden), grow(targets)
    weights = None if weights is None else grow(weights)
    out = _cross_entropy(plan._replace(tokens=each), hidden, kernel, targets, weights)
    return out[0][:M], out[1][:M]


def scores(plan: Plan, hidden: Array, kernel: Array) -> Float[Array, "m V"]:
    """The logits of some tokens, in float32."""
    logits = product(hidden, kernel.astype(hidden.dtype))
    return logits if plan.cap is None else plan.cap * jnp.tanh(logits / plan.cap)


def place(plan: Plan, targets: Array, vocabulary: int) -> Int[Array, "m"]:
    """Where the targets stand in this device's part of the vocabulary; maybe outside it."""
    return targets - (lax.axis_index(plan.split) * vocabulary if plan.split else 0)


def measure(plan: Plan, logits: Array, targets: Array) -> tuple[Array, Array]:
    """Log-probability of the (smoothed) targets and normalizer, over the whole vocabulary."""
    V = logits.shape[-1]
    peak = logits.max(-1)
    if plan.split:
        peak = lax.pmax(peak, plan.split)
    total = jnp.exp(logits - peak[:, None]).sum(-1)
    at = place(plan, targets, V)
    inside = (at >= 0) & (at < V)
    own = jnp.take_along_axis(logits, jnp.clip(at, 0, V - 1)[:, None], -1)[:, 0]
    own = jnp.where(inside, own, 0.0)
    if plan.smoothing:
        spread = plan.smoothing / plan.vocabulary(V)
        own = (1 - plan.smoothing) * own + spread * logits.sum(-1)
    if plan.split:
        total, own = lax.psum((total, own), plan.split)
    normalizer = peak + jnp.log(total)
    return own - normalizer, normalizer


def slopes(
    plan: Plan, logits: Array, targets: Array, normalizer: Array, by: tuple[Array, Array]
) -> Float[Array, "m V"]:
    """The gradient of the raw logits, given those of the log-probability and of the normalizer."""
    V = logits.shape[-1]
    hit = jnp.arange(V) == place(plan, targets, V)[:, None]
    out = jnp.exp(logits - normalizer[:, None]) * (by[1] - by[0])[:, None]
    spread = plan.smoothing / plan.vocabulary(V)
    out = out + jnp.where(hit, 1 - plan.smoothing + spread, spread) * by[0][:, None]
    return out if plan.cap is None else out * (1 - jnp.square(logits / plan.cap))


def pull(hidden: Array, kernel: Array, back: Array) -> tuple[Array, Array]:
    """The gradients of the hidden states and of the kernel from that of the logits."""
    back = back.astype(hidden.dtype)
    return product(back, kernel.T.astype(hidden.dtype)).astype(hidden.dtype), product(
        hidden.T, back
    )


def in_chunks(plan: Plan, *arrays: Array) -> tuple[Array, ...]:
    return tuple(x.reshape(-1, plan.tokens, *x.shape[1:]) for x in arrays)


def over_chunks(body: Any, start: Array, chunks: tuple[Array, ...]) -> tuple[Array, Any]:
    """A scan, or the one call that there is."""
    if chunks[0].shape[0] > 1:
        total, outs = lax.scan(body, start, chunks)
        return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)
    return body(start, tuple(x[0] for x in chunks))


def _plain(plan: Plan, hidden: Array, kernel: Array, targets: Array, weights: Sides) -> Sides:
    def body(_: Array, chunk: tuple[Array, Array]) -> tuple[Array, Sides]:
        return _, measure(plan, scores(plan, chunk[0], kernel), chunk[1])

    return over_chunks(body, jnp.zeros(()), in_chunks(plan, hidden, targets))[1]


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
    chunks = in_chunks(plan, hidden, targets, weights.astype(jnp.float32))
    dw, (logp, normalizer, dh) = over_chunks(body, start, chunks)
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
        def body(dw: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
            hidden, targets, normalizer, *by = chunk
            logits = scores(plan, hidden, kernel)
            back = slopes(plan, logits, targets, normalizer, (by[0], by[1]))
            dh, more = pull(hidden, kernel, back)
            return dw + more, dh

        chunks = in_chunks(plan, hidden, targets, normalizer, *by)
        dw, dh = over_chunks(body, jnp.zeros(kernel.shape, jnp.float32), chunks)
        return dh, dw

    if ready is None:
        dh, dw = again()
    else:
        wanted = expected_by(plan, weights.astype(jnp.float32), normalizer)
        factor, same = ratio(by, wanted)
        scaled = lambda: tuple((x * factor).astype(x.dtype) for x in ready)
        dh, dw = lax.cond(same, scaled, again)
    return dh, dw.astype(kernel.dtype), None, None


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
