"""Linear cross-entropy: ours, optax's on whole logits, and tokamax's where it is installed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
)
from jscale.pallas_kernels.linear_cross_entropy import choice


@dataclass(frozen=True)
class Case:
    """Tokens, model size, vocabulary."""

    tokens: int = 2048
    dim: int = 512
    vocabulary: int = 32_000
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens of {self.dim:,}, vocabulary {self.vocabulary:,}, {self.dtype}"
        )


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """Llama 3's vocabulary and size on accelerators."""
    if quick:
        return [Case(256, 64, 512, "float32" if platform == "cpu" else "bfloat16")]
    if platform == "cpu":
        return [Case(dtype="float32")]
    return [Case(8192, 4096, 128_256)]


def inputs(case: Case) -> dict[str, Any]:
    """Hidden states, the vocabulary's kernel, and targets."""
    shapes = {"hidden": (case.tokens, case.dim), "kernel": (case.dim, case.vocabulary)}
    drawn = draw(shapes, case.dtype)
    kernel = drawn["kernel"] * drawn["kernel"].dtype.type(case.dim**-0.5)
    targets = jax.random.randint(jax.random.key(1), (case.tokens,), 0, case.vocabulary)
    return {"hidden": drawn["hidden"], "kernel": kernel, "targets": targets}


def work(case: Case) -> dict[str, Work]:
    """One product forward and two backward; logits made again are not counted."""
    forward = 2.0 * case.tokens * case.dim * case.vocabulary
    width = jnp.dtype(case.dtype).itemsize
    bytes = float(width * case.dim * (case.tokens + case.vocabulary))
    return {
        "forward": Work(forward, bytes),
        "backward": Work(2 * forward, 2 * bytes),
        "training": Work(3 * forward, 3 * bytes),
    }


def run(name: str) -> Callable[..., Any]:
    """The log-probabilities of an implementation."""
    return lambda hidden, kernel, targets: choice.linear_cross_entropy(
        hidden, kernel, targets, implementation=name
    )[0]


def by_optax(hidden: Any, kernel: Any, targets: Any) -> Any:
    """Whole logits in float32, and optax's loss of them."""
    import optax

    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return -optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By the reference."""
    return exactly(run("reference"), given)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    return {name: differentiable(run(name)) for name in choice.IMPLEMENTATIONS}


def rivals(case: Case) -> dict[str, Contender | str]:
    """Whole logits."""
    return {"optax": differentiable(by_optax)}


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return choice.choose(case.tokens, case.vocabulary)


SUBJECT = Subject(
    *("linear_cross_entropy", Case, cases, inputs, work, values, contenders, chosen), rivals=rivals
)
