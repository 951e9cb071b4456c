"""What a task is given and what it gives: a seam that a user's own task fits as well as ours."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jscale.data.tokenizers import Tokenizer
from jscale.evaluation.subject import Subject
from jscale.score import Told, tell_nobody


class Result(NamedTuple):
    """What came out: numbers by name, and what was predicted for each question, as plain data."""

    values: dict[str, float]
    predictions: list[dict[str, Any]]


@runtime_checkable
class Questions(Protocol):
    """A task whose file has been read and found good."""

    def ask(self, subject: Subject, tell: Told = tell_nobody) -> Result:
        """The result of a model; `tell` hears (questions done, questions in all)."""
        ...


@runtime_checkable
class EvaluationTask(Protocol):
    """The part of a recipe that says what a model is asked."""

    @property
    def title(self) -> str:
        """What its numbers are called: task/<title>/acc."""
        ...

    def open(self, tokenizer: Tokenizer, length: int) -> Questions:
        """Read the questions for a model that was trained on rows of so many places.

        Raises `DataError`: one sentence about the file and the line at fault.
        """
        ...


def share(name: str, hits: Sequence[bool]) -> dict[str, float]:
    """The share of hits, and its standard error: √(p (1 − p) / (n − 1)), for two questions or more.

    >>> share("acc", [True, False])
    {'acc': 0.5, 'acc_stderr': 0.5}
    """
    count = len(hits)
    p = sum(hits) / count
    error = {f"{name}_stderr": math.sqrt(p * (1 - p) / (count - 1))} if count > 1 else {}
    return {name: p, **error}


def flat(results: Mapping[str, Result]) -> dict[str, float]:
    """The numbers of several tasks under the names that they are written with.

    >>> flat({"sums": Result({"acc": 0.5}, [])})
    {'task/sums/acc': 0.5}
    """
    return {
        f"task/{title}/{name}": value
        for title, result in results.items()
        for name, value in result.values.items()
    }
