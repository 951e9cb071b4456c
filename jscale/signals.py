"""Being asked to stop: Ctrl-C and SIGTERM end a run after its current step, with a checkpoint."""

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(Exception):
    """Training was asked to stop and did, with everything saved. `status` is the exit status."""

    def __init__(self, signum: int, step: int):
        self.status = 130 if signum == signal.SIGINT else 75
        super().__init__(f"stopped at step {step}; everything is saved, run it again to go on")


class Signals:
    """While entered, the first SIGINT or SIGTERM is only remembered; a second one interrupts.

    Signals reach the main thread only: in any other, nothing is changed.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._remember)
        return self

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signum

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
