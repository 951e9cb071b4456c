"""Being asked to stop: Ctrl-C and SIGTERM end a run with a checkpoint, promptly.

Between steps the first signal is obeyed after the step. Where nothing would be lost, as while data
are awaited or a program is compiled, it is obeyed at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

ASIDE = "jscale-aside"  # the name of threads that may be abandoned

T = TypeVar("T")


class Stopped(KeyboardInterrupt):
    """A run was asked to stop and did; nothing is lost. `status` is the exit status.

    `step` is the step that was saved; None where there was nothing to save.
    """

    def __init__(self, signum: int, step: int | None = None):
        self.signum, self.step = signum, step
        self.status = status(signum)
        done = "nothing is lost" if step is None else f"step {step} is saved"
        super().__init__(f"stopped; {done}, run it again to go on")


class Interrupted(KeyboardInterrupt):
    """A second signal ended a run before all was saved. `status` is the exit status."""

    def __init__(self, signum: int):
        self.status = status(signum)
        super().__init__("ended at once; the last saved step stands")


class Terminated(KeyboardInterrupt):
    """A command that saves nothing was ended by SIGTERM, as Ctrl-C would have ended it."""


def status(signum: int) -> int:
    """The exit status after a signal: 130 after Ctrl-C, 75 (run me again) after SIGTERM."""
    return 130 if signum == signal.SIGINT else 75


class Signals:
    """While entered, the first SIGINT or SIGTERM is only remembered in `asked`, or, inside of
    `at_once()`, raises `Stopped` (unless a module is being imported); a second one interrupts in
    any case.

    Signals reach the main thread only: in any other, nothing is changed.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._at_once = False
        self._left = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self.asked = None
        self._left = False
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) != self._hear:
                    self._before[signum] = signal.signal(signum, self._hear)
                    around = getattr(self._before[signum], "__self__", None)
                    if isinstance(around, Signals) and not around._left:
                        self.asked = around.asked  # what was asked of it is asked of us
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which stopping loses nothing: a signal raises `Stopped` there and then."""
        before, self._at_once = self._at_once, True
        try:
            if self.asked is not None:
                raise Stopped(self.asked)
            yield
        finally:
            self._at_once = before

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise Interrupted(signum)
        self.asked = signum
        if self._at_once and not importing(frame):
            raise Stopped(signum)

    def __exit__(self, *error: object) -> None:
        self._left = True
        for signum in self._before:
            if signal.getsignal(signum) == self._hear:  # else another one entered later and stays
                handler = self._handler_before(signum)
                # None: it was set by other than Python, which cannot put it back.
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handler_before(self, signum: int) -> Any:
        """Who heard the signal before, passing over those who have left in the meantime."""
        handler = self._before[signum]
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, Signals) and owner._left:
            return owner._handler_before(signum)
        return handler


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in a frame or those above it.

    An exception raised there by a signal may be lost, or crash a library that is being loaded.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def aside(call: Callable[[], T]) -> T:
    """The result of a call into native code that takes long, made so that a signal is heard.

    Python hears signals only between its own instructions. The call is made by another thread while
    this one waits; should a signal raise here, the call is left to itself (`abandoned`).
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=ASIDE, daemon=True).start()
    return future.result()


def abandoned() -> bool:
    """Whether a call made aside is still going on. Python cannot then end as usual: its last acts
    would take away what native code is using."""
    return any(thread.name == ASIDE for thread in threading.enumerate())
