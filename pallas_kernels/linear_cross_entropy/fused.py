"""The gradients of kernels that make logits tile by tile: their half of linear cross-entropy.

Forward, no logit leaves the chip. Backward, the logits of some tokens are made again, and their
gradient is written in the dtype of the hidden states; what is left are two products of matrices,
which are XLA's. A gradient that is expected would save no product: it too needs the normalizer,
and so the logits twice.
"""

# M tokens, D model size, V vocabulary (of this device, where it is split).

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.linear_cross_entropy.chunks import gradients
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan, joined


class Kernels(NamedTuple):
    """Two kernels, and the sizes of their tiles.

    `measure(size, plan, hidden, kernel, at)` gives, over this device's part of the vocabulary, in
    which targets stand `at` a place or outside it, log Σ exp, the target's logit or 0, and with
    smoothing the sum of the logits, each [M]. `slopes(size, plan, hidden, kernel, at, normalizer,
    by)` gives the gradient of raw logits, [M, V], from those of log-probability and normalizer.
    """

    measure: Callable[..., Any]
    slopes: Callable[..., Any]
    size: Any


def _primal(
    kernels: Kernels,
    plan: Plan,
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    targets: Any,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    V = kernel.shape[1]
    at = plan.place(targets, V)
    return joined(plan, V, *kernels.measure(kernels.size, plan, hidden, kernel, at))


def _forward(
    kernels: Kernels, plan: Plan, hidden: Array, kernel: Array, targets: Array
) -> tuple[Any, tuple[Any, ...]]:
    out = _primal(kernels, plan, hidden, kernel, targets)
    return out, (hidden, kernel, targets, out[1])


def _backward(
    kernels: Kernels, plan: Plan, saved: tuple[Any, ...], by: tuple[Array, Array]
) -> tuple[Array, Array, None]:
    hidden, kernel, targets, normalizer = saved
    if plan.split:  # what comes back to one device of several is its share
        by = lax.psum(by, plan.split)

    def made(hidden: Array, at: Array, normalizer: Array, *by: Array) -> Array:
        return kernels.slopes(kernels.size, plan, hidden, kernel, at, normalizer, by)

    at = plan.place(targets, kernel.shape[1])
    dh, dw = gradients(plan.tokens, made, hidden, kernel, at, normalizer, *by)
    return dh, dw.astype(kernel.dtype), None


fused = jax.custom_vjp(_primal, nondiff_argnums=(0, 1))
fused.defvjp(_forward, _backward)
