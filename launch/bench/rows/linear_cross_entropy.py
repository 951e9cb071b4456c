"""Linear cross-entropy: ours, optax's on whole logits, and tokamax's where it is installed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    differentiable,
    draw,
    exactly,
    ours,
    picked,
    slope,
)
from jscale.launch.bench.tune import Target
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.linear_cross_entropy import Expected, linear_cross_entropy, tpu, triton
from jscale.pallas_kernels.linear_cross_entropy.choice import OPERATION, Call, chunk
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan
from jscale.pallas_kernels.linear_cross_entropy.tiles import TUNABLES, Extent
from jscale.pallas_kernels.tiles.tunable import Tunable


@dataclass(frozen=True)
class Case:
    """Tokens, model size, vocabulary; whether the gradient is expected, as in training."""

    tokens: int = 2048
    dim: int = 512
    vocabulary: int = 32_000
    dtype: str = "bfloat16"
    expected: bool = False

    def __str__(self) -> str:
        told = ", a gradient expected" if self.expected else ""
        return (
            f"{self.tokens:,} tokens of {self.dim:,}, vocabulary {self.vocabulary:,},"
            f" {self.dtype}{told}"
        )


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """Llama 3's vocabulary and size on accelerators; log-probabilities, and as training does."""
    if quick:
        return [Case(256, 64, 512, "float32" if platform == "cpu" else "bfloat16")]
    if platform == "cpu":
        return [Case(dtype="float32"), Case(dtype="float32", expected=True)]
    return [Case(8192, 4096, 128_256), Case(8192, 4096, 128_256, expected=True)]


def inputs(case: Case) -> dict[str, Any]:
    """Hidden states, the vocabulary's kernel, and targets."""
    shapes = {"hidden": (case.tokens, case.dim), "kernel": (case.dim, case.vocabulary)}
    drawn = draw(shapes, case.dtype)
    kernel = drawn["kernel"] * drawn["kernel"].dtype.type(case.dim**-0.5)
    targets = jax.random.randint(jax.random.key(1), (case.tokens,), 0, case.vocabulary)
    return {"hidden": drawn["hidden"], "kernel": kernel, "targets": targets}


def work(case: Case) -> dict[str, Work]:
    """One product forward and two backward; logits made again are not counted.

    Where the gradient is expected, it is made on the way forward: the way back is no pass alone.
    """
    forward = 2.0 * case.tokens * case.dim * case.vocabulary
    width = jnp.dtype(case.dtype).itemsize
    bytes = float(width * case.dim * (case.tokens + case.vocabulary))
    back = {} if case.expected else {"backward": Work(2 * forward, 2 * bytes)}
    return {
        "forward": Work(forward, bytes),
        **back,
        "training": Work(3 * forward, 3 * bytes),
    }


def run(case: Case, name: str) -> Callable[..., Any]:
    """The log-probabilities of an implementation."""
    told = Expected(-slope(jnp.zeros(case.tokens))) if case.expected else None
    return lambda hidden, kernel, targets: linear_cross_entropy(
        hidden, kernel, targets, expected=told, implementation=name
    )[0]


def by_optax(hidden: Any, kernel: Any, targets: Any) -> Any:
    """Whole logits in float32, and optax's loss of them."""
    import optax

    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return -optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By the reference."""
    return exactly(run(case, "reference"), given)


def call(case: Case) -> Call:
    """The case as implementations see it."""
    dtypes = case.dtype, case.dtype
    return Call(case.tokens, case.dim, case.vocabulary, *dtypes, expected=case.expected)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    return ours(OPERATION, call(case), partial(run, case))


def rivals(case: Case) -> dict[str, Contender | str]:
    """Whole logits."""
    return {"optax": differentiable(by_optax)}


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return picked(OPERATION, call(case))


def targets(case: Case, where: Device) -> list[Target]:
    """The kernels that run on the device."""
    sizes = case.tokens, case.dim, case.vocabulary
    extent, plan = Extent(*sizes, case.dtype, case.dtype), Plan(chunk(*sizes), None, 0.0, ())
    kernels = {"tpu": tpu.kernel, "triton": triton.kernel}

    def target(tunable: Tunable) -> Target:
        one = kernels[tunable.implementation]
        sized = lambda size: (
            lambda hidden, kernel, targets: one(plan, hidden, kernel, targets, None, size)[0]
        )
        return Target(tunable, extent, sized)

    by = OPERATION.implementations
    here = [t for t in TUNABLES if by[t.implementation].obstacle(call(case), where) is None]
    return [target(tunable) for tunable in here]


SUBJECT = Subject(
    *("linear_cross_entropy", Case, cases, inputs, work, values, contenders, chosen),
    rivals=rivals,
    targets=targets,
)
