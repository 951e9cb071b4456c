"""Progress as plain lines, for files and pipes."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from jscale.metrics.figures import duration, figures, printable, size

SECONDS = 10.0  # after so long without a line, the next step or piece of work is shown
STILL = 30.0  # a phase says that it still goes on


@runtime_checkable
class Stream(Protocol):
    """What of a file is needed."""

    def write(self, text: str, /) -> Any:
        """Add the text."""
        ...

    def flush(self) -> None:
        """Let readers see it."""
        ...


class Lines:
    """Writes a line for every `every`-th step, for the first and the last, and after ten seconds.

    A phase writes a line when it begins, one every `still` seconds while it lasts (a compilation
    may take minutes), and one when it ends.
    """

    def __init__(
        self,
        stream: Stream,
        total: int,
        every: int = 10,
        clock: Callable[[], float] = time.monotonic,
        still: float = STILL,
    ) -> None:
        self._stream = stream
        self._total = total
        self._every = every
        self._clock = clock
        self._still = still
        self._last: float | None = None  # when a step was shown
        self._worked: dict[str, float] = {}  # when work was shown, by phase
        self._lock = threading.Lock()

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Nothing to take down."""

    def note(self, text: str) -> None:
        """Write the text and flush, so that a pipe shows it now."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._lock:  # a ticking phase writes from its own thread
            self._stream.write(printable(text, encoding) + "\n")
            self._stream.flush()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line for this step when it is its turn."""
        now = self._clock()
        late = self._last is None or now - self._last >= SECONDS
        if late or step % self._every == 0 or step == self._total:
            self._last = now
            self.note(f"step {step}/{self._total}  {figures(values)}".rstrip())

    def work(self, done: int, total: int, phase: str) -> None:
        """Write how many bytes are done: at first, every ten seconds, and at the end."""
        now = self._clock()
        last = self._worked.get(phase)
        if done >= total:
            self._worked.pop(phase, None)
        elif last is None or now - last >= SECONDS:
            self._worked[phase] = now
        else:
            return
        part = f"{100 * done / total:.0f}%" if total else "100%"
        self.note(f"{phase} {part} ({size(done)} of {size(total)})")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Write a line before and after, and one every `still` seconds between."""
        start = self._clock()
        self.note(f"{name} ...")
        over = threading.Event()

        def tick() -> None:
            while not over.wait(self._still):
                self.note(f"{name} ... {duration(self._clock() - start)}")

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        outcome = "failed after"
        try:
            yield
            outcome = "done in"
        finally:
            over.set()
            ticker.join()
            self.note(f"{name} ... {outcome} {duration(self._clock() - start)}")
