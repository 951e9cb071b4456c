"""What a person sees while a run goes on: a living line in a terminal, one text that is drawn anew
in a notebook, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from jscale.metrics.cell import Cell, in_notebook
from jscale.metrics.lines import STILL, Lines
from jscale.metrics.live import Live


class Progress:
    """Shows phases, steps and notes of a run of `total` steps; a context manager.

    Args:
        total: steps of the run.
        console: a `rich.console.Console`; the notebook's cell or standard output when None.
        every: without a terminal, show every so many steps (and any after ten silent seconds).
        clock: seconds, never going back.
        still: without a terminal, seconds after which a phase says again that it goes on.
    """

    def __init__(
        self,
        total: int,
        *,
        console: Any = None,
        every: int = 10,
        clock: Callable[[], float] = time.monotonic,
        still: float = STILL,
    ) -> None:
        if console is None and in_notebook():
            self._display = Cell(total, clock)
            return
        if console is None:
            from rich.console import Console  # slow to import

            console = Console()
        live = console.is_terminal and not console.is_dumb_terminal
        self._display = (
            Live(console, total, clock) if live else Lines(console.file, total, every, clock, still)
        )

    def __enter__(self) -> "Progress":
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A block of time with a name, such as "compiling the train step"; blocks may nest."""
        return self._display.phase(name)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Step number `step` (from 1) is done; `values` are shown in their order.

        Names tell units: `mfu` is a fraction, `..._seconds` a time, `..._per_second` a rate.
        """
        self._display.step(step, values)

    def note(self, text: str) -> None:
        """Print a text above the bar."""
        self._display.note(text)

    def work(self, done: int, total: int, phase: str) -> None:
        """`done` of `total` bytes of a phase such as "tokenizing" are through."""
        self._display.work(done, total, phase)
