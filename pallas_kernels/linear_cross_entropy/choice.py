"""The one signature of linear cross-entropy, and the choice of who computes it."""

# M tokens (of any dimensions), D model size, V vocabulary.

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels.linear_cross_entropy.reference import reference
from jscale.pallas_kernels.linear_cross_entropy.xla import Plan, Sides, chunked


class Expected(NamedTuple):
    """The gradient that will be asked for: that of Σ weights · (−log p + z_loss · log²Z), times
    any number. Known beforehand, it is made while the logits are at hand."""

    weights: Float[Array, "..."]
    z_loss: float = 0.0


LOGITS = 2**24  # at a time: 64 MiB in float32
TOKENS = 512  # at least at a time, or reading the weights costs more than multiplying by them


def linear_cross_entropy(
    hidden: Float[Array, "*M D"],
    kernel: Float[Array, "_ V"],
    targets: Int[Array, "..."],
    *,
    cap: float | None = None,
    smoothing: float = 0.0,
    expected: Expected | None = None,
    split: tuple[str, ...] = (),
    implementation: str | None = None,
) -> tuple[Float[Array, "*M"], Float[Array, "*M"]]:
    """log softmax(hidden · kernel)[target] and log Σ exp for every token, both in float32.

    Logits are c · tanh(logits / c) with `cap` c. With `smoothing` ε the log-probability is the mean
    under the target (1 − ε) · target + ε / V (Szegedy et al. 2015, arXiv 1512.00567). The kernel's
    gradient is summed in float32 and is of the kernel's dtype. `expected` changes no result: if the
    gradient asked for is that one, up to a factor, a product as large as the whole is saved; any
    other is right too. Inside `shard_map`, `split` names the mesh axes over which V is split;
    targets count over the whole.

    Raises:
        ConfigError: sizes that do not fit, a cap that is not positive, smoothing outside 0 … 1, a
            split vocabulary with an implementation that cannot, or an unknown implementation.
    """
    D, V = kernel.shape
    if hidden.shape[-1] != D or targets.shape != hidden.shape[:-1]:
        raise ConfigError(
            f"linear_cross_entropy: hidden {hidden.shape}, kernel {kernel.shape} and targets"
            f" {targets.shape} do not fit: [..., D], [D, V] and [...] are wanted"
        )
    if cap is not None and cap <= 0:
        raise ConfigError(f"linear_cross_entropy: cap must be positive, not {cap}")
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"linear_cross_entropy: smoothing must be in 0 … 1, not {smoothing}")
    if expected is not None and expected.weights.shape != targets.shape:
        raise ConfigError(
            f"linear_cross_entropy: expected.weights {expected.weights.shape} must be of the shape"
            f" of targets, {targets.shape}"
        )
    count = math.prod(targets.shape)
    name = implementation or choose(count, V)
    if name not in IMPLEMENTATIONS:
        known = did_you_mean(name, IMPLEMENTATIONS)
        raise ConfigError(f"no implementation {name!r} of linear_cross_entropy; {known}")
    flat = hidden.reshape(count, D), kernel, targets.reshape(count)
    weights = None if expected is None else expected.weights.reshape(count)
    plan = Plan(
        chunk(count, V), cap, 0.0 if expected is None else expected.z_loss, split, smoothing
    )
    logp, normalizer = IMPLEMENTATIONS[name](plan, *flat, weights)
    return logp.reshape(targets.shape), normalizer.reshape(targets.shape)


def whole(plan: Plan, hidden: Array, kernel: Array, targets: Array, weights: Sides) -> Sides:
    """The reference, for a vocabulary that is not split."""
    if plan.split:
        raise ConfigError(
            "linear_cross_entropy: 'reference' cannot take a vocabulary split over"
            f" {plan.split}; take 'xla'"
        )
    return reference(hidden, kernel, targets, plan.cap, plan.smoothing)


IMPLEMENTATIONS: dict[str, Callable[..., Sides]] = {"reference": whole, "xla": chunked}


def chunk(tokens: int, vocabulary: int) -> int:
    """How many tokens are taken at a time."""
    return max(1, min(tokens, max(TOKENS, LOGITS // vocabulary)))


@lru_cache(maxsize=256)  # so that each choice is logged once
def choose(tokens: int, vocabulary: int) -> str:
    """The implementation for so many tokens and scores: chunks, which are never slower."""
    logging.getLogger(__name__).info(
        "linear cross-entropy of %d tokens and a vocabulary of %d by 'xla': %d tokens at a time,"
        " the fastest form that holds no more logits",
        *(tokens, vocabulary, chunk(tokens, vocabulary)),
    )
    return "xla"
