"""Progress in a notebook's cell: one text that is drawn anew, not a line for every step."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jscale.metrics.figures import duration, figures, printable, size

SECONDS = 0.5  # between two drawings


class Cell:
    """Shows the notes so far and, below them, the phase or the step that the run is at.

    `show` is given the whole text each time; by default it is displayed, and then updated, below
    the cell that runs.
    """

    def __init__(
        self,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[str], None] | None = None,
    ) -> None:
        self._total, self._clock, self._show = total, clock, show or Shown()
        self._notes: list[str] = []
        self._now = ""
        self._drawn: float | None = None

    def start(self) -> None:
        """Nothing to prepare: the first text makes the output."""

    def stop(self) -> None:
        """Draw a last time."""
        self._draw()

    def note(self, text: str) -> None:
        """Keep the text above the line."""
        self._notes.append(printable(text, "utf-8"))
        self._draw()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """The line is this step's from now on; drawn when the last drawing is a while ago."""
        self._say(f"step {step}/{self._total}  {figures(values)}".rstrip())

    def work(self, done: int, total: int, phase: str) -> None:
        """The line tells how many bytes are done."""
        self._say(f"{phase} {size(done)} of {size(total)}" if done < total else "")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The line is the phase's name while it lasts; a note says how long it took."""
        start, before = self._clock(), self._now
        self._now = f"{name} ..."
        self._draw()
        outcome = "failed after"
        try:
            yield
            outcome = "done in"
        finally:
            self._now = before
            self.note(f"{name} ... {outcome} {duration(self._clock() - start)}")

    def _say(self, line: str) -> None:
        self._now = line
        if self._drawn is None or self._clock() - self._drawn >= SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = self._clock()
        self._show("\n".join([*self._notes, self._now]).rstrip())


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this code, so that what is displayed can be seen."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class Shown:
    """A text below the cell that runs, replaced by the next one."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, text: str) -> None:
        """Display the text, or put it in the place of the one before."""
        from IPython.display import display

        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
