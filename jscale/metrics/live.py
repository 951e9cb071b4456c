"""Progress as one living line at the bottom of a terminal."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jscale.metrics.figures import duration, figures, printable, size


class Live:
    """Redraws a line four times a second, from a thread of rich's: a compilation visibly ticks.

    The line is one string cut to the width of the terminal, in characters that its encoding has.
    """

    def __init__(
        self, console: Any, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.live import Live as RichLive

        self._console = console
        self._total = total
        self._clock = clock
        self._phases: list[tuple[str, float]] = []  # innermost last, with its beginning
        self._step = 0
        self._values: Mapping[str, float] = {}
        self._work: tuple[int, int, str] | None = None
        self._live = RichLive(get_renderable=self._text, console=console, refresh_per_second=4)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """Draw a last time and leave the line there."""
        self._live.stop()

    def note(self, text: str) -> None:
        """Print the text above the line."""
        from rich.text import Text  # as Text, so that [brackets] are no markup

        self._console.print(Text(printable(text, self._console.encoding)), soft_wrap=True)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show this step from the next drawing on."""
        self._step, self._values, self._work = step, dict(values), None

    def work(self, done: int, total: int, phase: str) -> None:
        """Show how many bytes are done, until all are."""
        self._work = (done, total, phase) if done < total else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show the name and the seconds since its beginning."""
        start = self._clock()
        self._phases.append((name, start))
        outcome = "failed after"
        try:
            yield
            outcome = "done in"
        finally:
            self._phases.pop()
            self.note(f"{name} ... {outcome} {duration(self._clock() - start)}")

    def line(self) -> str:
        """What is drawn now."""
        phases, work = list(self._phases), self._work  # the main thread may change them meanwhile
        words = "  ".join(f"{name} {duration(self._clock() - start)}" for name, start in phases)
        if work is not None:
            done, total, phase = work
            head = f"{phase}  {self._bar(done, total)} {size(done)} of {size(total)}"
        else:
            words = words or "training"
            bar = self._bar(self._step, self._total)
            head = f"{bar} {self._step}/{self._total}  {figures(self._values)}".rstrip()
        return printable("  ".join(part for part in (words, head) if part), self._console.encoding)

    def _bar(self, done: int, total: int) -> str:
        """A bar of a fifth of the terminal, 24 characters at most."""
        width = min(24, self._console.width // 5)
        full = round(width * min(1.0, done / total)) if total > 0 else width
        # A heavy line on a light one.
        ascii_only = not self._console.encoding.startswith("utf")
        block, space = ("#", ".") if ascii_only else ("\u2501", "\u2500")
        return block * full + space * (width - full)

    def _text(self) -> Any:
        from rich.text import Text

        # Cropped and not ended with an ellipsis, which not every encoding has.
        return Text(self.line(), no_wrap=True, overflow="crop")
