"""Retention with the state that it carries: ours only, since no other library has it."""

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
from jscale.pallas_kernels.retention.choice import OPERATION, Call, retention

MOST = 4 * 2**30  # bytes of scores that the reference may hold when it is timed


@dataclass(frozen=True)
class Case:
    """A call; heads decay as RetNet's do."""

    rows: int = 2
    length: int = 2048
    heads: int = 4
    head: int = 64
    value: int = 128
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return (
            f"{self.rows} × {self.length:,} tokens, {self.heads} heads of {self.head} and"
            f" {self.value}, {self.dtype}"
        )


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """RetNet's sizes (keys of 256, values of 512) on accelerators."""
    if quick:
        return [Case(1, 128, 2, 16, 32, "float32" if platform == "cpu" else "bfloat16")]
    if platform == "cpu":
        return [Case(dtype="float32")]
    return [Case(2, 8192, 8, 256, 512), Case(8, 2048, 8, 256, 512)]


def inputs(case: Case) -> dict[str, Any]:
    """Queries, keys scaled by 1/√H, values."""
    shape = case.rows, case.length, case.heads
    keys = (*shape, case.head)
    drawn = draw({"q": keys, "k": keys, "v": (*shape, case.value)}, case.dtype)
    return drawn | {"k": drawn["k"] * drawn["k"].dtype.type(case.head**-0.5)}


def work(case: Case) -> dict[str, Work]:
    """Of the recurrence: a state made and read for each token; other forms do more."""
    tokens = case.rows * case.length * case.heads
    forward = 4.0 * tokens * case.head * case.value
    bytes = float(jnp.dtype(case.dtype).itemsize * tokens * 2 * (case.head + case.value))
    return {
        "forward": Work(forward, bytes),
        "backward": Work(2.5 * forward, 2 * bytes),
        "training": Work(3.5 * forward, 3 * bytes),
    }


def run(case: Case, name: str) -> Callable[..., Any]:
    """An implementation as a function."""
    decay = jnp.log1p(-(2.0 ** -(5.0 + jnp.arange(case.heads))))
    return lambda q, k, v: retention(q, k, v, decay, implementation=name)[0]


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By the parallel form, or where that is too large by chunks, which tests hold to it."""
    name = "reference" if scores(case) <= MOST else "xla"
    return exactly(run(case, name), given)


def scores(case: Case) -> int:
    return 4 * case.rows * case.heads * case.length**2


def call(case: Case) -> Call:
    """The case as implementations see it."""
    return Call(case.rows, case.length, case.heads, case.head, case.value, case.dtype)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    held = scores(case)
    too_much = f"holds {held / 2**30:.0f} GiB of scores" if held > MOST else None
    return ours(OPERATION, call(case), partial(run, case), too_much)


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return picked(OPERATION, call(case))


SUBJECT = Subject("retention", Case, cases, inputs, work, values, contenders, chosen)
