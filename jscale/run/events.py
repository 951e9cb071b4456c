"""What happens during training, as values: the loop tells them, callbacks listen."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jscale.compiled import Compilation


class Stepped(NamedTuple):
    """A step's metrics have arrived from the device (a few steps after it was dispatched)."""

    step: int
    values: dict[str, float]


class Evaluated(NamedTuple):
    """The means over held-out text at a step."""

    step: int
    values: dict[str, float]


class Examined(NamedTuple):
    """What came out of a task of the recipe's evaluation at a step, by the task's title."""

    step: int
    task: str
    values: dict[str, float]


class Sampled(NamedTuple):
    """Continuations of the recipe's prompts at a step."""

    step: int
    texts: tuple[tuple[str, str], ...]  # (prompt, continuation)


class Saved(NamedTuple):
    """A checkpoint of a step was started; it is complete when the next one starts."""

    step: int
    folder: Path


class Noted(NamedTuple):
    """Something the user should know: a choice made, a step set aside, a surprise."""

    text: str


Event = Stepped | Evaluated | Examined | Sampled | Saved | Noted | Compilation
Callback = Callable[[Event], None]
