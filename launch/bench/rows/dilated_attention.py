"""Dilated attention: ours only, since no other library in JAX has it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp

from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    draw,
    exactly,
    ours,
    picked,
)
from jscale.pallas_kernels.attention import CAUSAL
from jscale.pallas_kernels.dilated_attention.choice import OPERATION, Call, dilated_attention
from jscale.pallas_kernels.dilated_attention.pattern import Pattern

MOST = 4 * 2**30  # bytes of scores that the reference may hold when it is timed


@dataclass(frozen=True)
class Case:
    """A call with the patterns (w, 1), (2w, 2), (4w, 4) for segments of w tokens."""

    rows: int = 1
    length: int = 4096
    heads: int = 4
    head: int = 64
    segment: int = 512
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return (
            f"{self.rows} × {self.length:,} tokens, {self.heads} heads of {self.head}, three"
            f" patterns from {self.segment}, {self.dtype}"
        )

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(Pattern(self.segment * r, r) for r in (1, 2, 4))


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """LongNet's form, at sizes of the platform."""
    if quick:
        kind = "float32" if platform == "cpu" else "bfloat16"
        return [Case(1, 256, 2, 16, 32, kind)]
    if platform == "cpu":
        return [Case(dtype="float32")]
    return [Case(2, 8192, 16, 128, 2048), Case(1, 32_768, 16, 128, 2048)]


def inputs(case: Case) -> dict[str, Any]:
    """Queries, keys and values."""
    shape = case.rows, case.length, case.heads, case.head
    return draw(dict.fromkeys("qkv", shape), case.dtype)


def work(case: Case) -> dict[str, Work]:
    """As attention's, over the pairs of all patterns."""
    pairs = 0
    for segment, dilation in case.patterns:
        taken = segment // dilation
        pairs += case.length // segment * taken * (taken + 1) // 2
    forward = 4.0 * case.rows * case.heads * pairs * case.head
    array = float(jnp.dtype(case.dtype).itemsize * case.rows * case.length * case.heads * case.head)
    return {
        "forward": Work(forward, 4 * array),
        "backward": Work(2.5 * forward, 8 * array),
        "training": Work(3.5 * forward, 12 * array),
    }


def run(case: Case, name: str) -> Callable[..., Any]:
    """An implementation as a function."""
    return lambda q, k, v: dilated_attention(q, k, v, patterns=case.patterns, implementation=name)


def scores(case: Case) -> int:
    return 4 * 3 * case.rows * case.heads * case.length**2


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By the reference, or where that is too large by the sparse form, which tests hold to it."""
    name = "reference" if scores(case) <= MOST else "xla"
    return exactly(run(case, name), given)


def call(case: Case) -> Call:
    """The case as implementations see it."""
    heads = case.heads, case.heads
    return Call(case.rows, case.length, *heads, case.dtype, CAUSAL, case.patterns, False, False)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    held = scores(case)
    too_much = f"holds {held / 2**30:.0f} GiB of scores" if held > MOST else None
    return ours(OPERATION, call(case), partial(run, case), too_much)


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return picked(OPERATION, call(case))


SUBJECT = Subject("dilated_attention", Case, cases, inputs, work, values, contenders, chosen)
