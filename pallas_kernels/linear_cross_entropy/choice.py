"""The one signature of linear cross-entropy, and the choice of who computes it."""

# M tokens (of any dimensions), D model size, V vocabulary.

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.implementation import Implementation, Operation
from jscale.pallas_kernels.linear_cross_entropy import tpu, triton
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan
from jscale.pallas_kernels.linear_cross_entropy.reference import reference
from jscale.pallas_kernels.linear_cross_entropy.xla import chunked


class Expected(NamedTuple):
    """The gradient that will be asked for: that of Σ weights · (−log p + z_loss · log²Z), times
    any number. Known beforehand, it is made while the logits are at hand."""

    weights: Float[Array, "..."]
    z_loss: float = 0.0


class Call(NamedTuple):
    """What an implementation may refuse, and a choice may depend on."""

    tokens: int
    dim: int
    vocabulary: int
    dtype: str
    weights: str
    split: tuple[str, ...] = ()
    expected: bool = False

    def __str__(self) -> str:
        dtypes = self.dtype if self.dtype == self.weights else f"{self.dtype} by {self.weights}"
        split = f" of each device, split over {' and '.join(self.split)}," if self.split else ","
        told = ", a gradient expected" if self.expected else ""
        return (
            f"{self.tokens} tokens of {self.dim} and a vocabulary of {self.vocabulary}{split}"
            f" {dtypes}{told}"
        )


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
    targets count over the whole. A target outside 0 … V − 1, such as −100 for a token that does not
    count, has a logit of 0: what it gives is a number, which a weight of 0 takes out of loss and
    gradients. `implementation=None` chooses, and logs what and why.

    Raises:
        ConfigError: sizes that do not fit, a cap that is not positive, smoothing outside 0 … 1, an
            unknown implementation or one that cannot.
    """
    _check(hidden, kernel, targets, cap, smoothing, expected)
    (D, V), count = kernel.shape, math.prod(targets.shape)
    dtypes = str(hidden.dtype), str(kernel.dtype)
    call = Call(count, D, V, *dtypes, tuple(split), expected is not None)
    run = OPERATION.pick(call, implementation).run
    if count == 0:
        none = jnp.zeros(targets.shape, jnp.float32)
        return none, none
    weights = None if expected is None else expected.weights.reshape(count)
    z_loss = 0.0 if expected is None else expected.z_loss
    plan = Plan(chunk(count, D, V), cap, z_loss, tuple(split), smoothing)
    flat = hidden.reshape(count, D), kernel, targets.reshape(count)
    logp, normalizer = run(plan, *flat, weights)
    return logp.reshape(targets.shape), normalizer.reshape(targets.shape)


def _check(
    hidden: Array,
    kernel: Array,
    targets: Array,
    cap: float | None,
    smoothing: float,
    expected: Expected | None,
) -> None:
    D, V = kernel.shape
    if hidden.shape[-1] != D or targets.shape != hidden.shape[:-1] or not D or not V:
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


def chunk(tokens: int, dim: int, vocabulary: int) -> int:
    """How many tokens are taken at a time, where logits or their gradient are held.

    Each chunk reads and writes the sum of the kernel's gradient, D · V numbers in float32, which
    are held anyway: with D / 2 tokens their logits are half as large. On an H200 a product with 512
    tokens then waits for memory, one with 2048 does not.
    """
    return max(1, min(tokens, max(TOKENS, LOGITS // vocabulary, dim // 2)))


def whole(plan: Plan, hidden: Array, kernel: Array, targets: Array, weights: Any) -> Any:
    """The reference, for a vocabulary that is not split."""
    return reference(hidden, kernel, targets, plan.cap, plan.smoothing)


def _split(call: Call) -> str | None:
    return f"cannot take a vocabulary split over {call.split}; take 'xla'" if call.split else None


def preferred(call: Call, device: Device) -> Sequence[tuple[str, str]]:
    """Whom to try, best first, and why. Reckoned in benchmarks/notes; not yet measured there."""
    few = f"{chunk(call.tokens, call.dim, call.vocabulary)} tokens at a time"
    if call.expected:
        why = "the gradient is made with the logits, a product fewer than any other form needs"
        return [("xla", f"{few}; {why}")]
    if device.platform == "tpu":
        return [
            ("tpu", "forward no logit leaves the chip, and backward their gradient only"),
            ("xla", few),
        ]
    if device.platform == "gpu":
        why = "the vendor's products gain more than the logits' way through memory costs"
        return [("xla", f"{few}; {why}")]
    return [("xla", f"{few}, the fastest form that holds no more logits")]


OPERATION = Operation(
    "linear cross-entropy",
    {
        "reference": Implementation(whole, _split),
        "xla": Implementation(chunked, loops=True),
        "tpu": Implementation(tpu.kernel, tpu.refuses, platforms=("tpu",), kernel=True),
        "triton": Implementation(triton.kernel, triton.refuses, platforms=("gpu",), kernel=True),
    },
    preferred,
)
