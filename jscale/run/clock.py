"""Where the time of a run goes: every second of it belongs to one phase, so that they add up."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OTHER = "other"


class Clock:
    """Adds up seconds by phase. Of phases within phases the innermost has the time.

    What is spent in no phase is "other"; so the phases are always the time since the beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._stack: list[list[str]] = [[OTHER]]  # lists, told apart by identity
        self._seconds: dict[str, float] = {}
        self._since = clock()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now, the running one included."""
        self._turn()
        return dict(self._seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A block whose time belongs to `name`, but for the phases within it.

        A generator may leave its block late, when others have been entered: they stay.
        """
        self._turn()
        entry = [name]
        self._stack.append(entry)
        try:
            yield
        finally:
            self._turn()
            self._stack = [other for other in self._stack if other is not entry]

    def _turn(self) -> None:
        now, name = self._clock(), self._stack[-1][0]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now
