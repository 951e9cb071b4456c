"""How Ctrl-C and SIGTERM end a command, wherever it is.

The first signal raises, so that what is open is closed. While a module is imported, or a command
has nothing to close, it ends the process there and then, for libraries may swallow exceptions or
crash on them. A second signal ends the process in any case: Python hears signals only between its
own instructions, and a step or a compilation may take minutes. What was saved stands: a step is
committed by one rename or not at all.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from jscale.signals import Terminated, importing, status

SHOW_CURSOR = "\x1b[?25h"  # a living progress line hides it
USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def signals_end() -> Iterator[None]:
    """A block that a signal ends, and a second one for certain. In the main thread of a program of
    ours alone: it must not be used where another program (a notebook) owns the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _first_raises(), _second_ends():
        yield


@contextmanager
def _first_raises() -> Iterator[None]:
    """A block in which a signal that nobody else hears raises KeyboardInterrupt or Terminated."""
    ours = [number for number, usual in USUAL.items() if signal.getsignal(number) == usual]
    for number in ours:
        signal.signal(number, _hear)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, USUAL[number])


def _hear(signum: int, frame: FrameType | None) -> None:
    if importing(frame):
        end_now(signum, told(signum))
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


class Patience:
    """How many signals end a process of `signals_end`, whatever it is doing."""

    signals = 2


PATIENCE = Patience()


@contextmanager
def nothing_to_close() -> Iterator[None]:
    """A block, inside of `signals_end`, in which the first signal ends the process by itself.

    For long work that leaves nothing half done, in libraries that may swallow what is raised.
    """
    ours = [number for number in USUAL if signal.getsignal(number) is _hear]
    if not ours:
        yield
        return
    for number in ours:
        # The thread that counts signals ends the process: it hears one that another thread caught,
        # or that found this one in native code.
        signal.signal(number, lambda signum, frame: None)
    PATIENCE.signals = 1
    try:
        yield
    finally:
        PATIENCE.signals = 2
        for number in ours:
            signal.signal(number, _hear)


def told(signum: int) -> str:
    """What a command says that a signal ended."""
    return f"jscale: {'interrupted' if signum == signal.SIGINT else 'terminated'}"


@contextmanager
def _second_ends() -> Iterator[None]:
    """The interpreter writes each signal's number into a socket as it arrives, and a thread reads
    them and leaves at the second."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    over = threading.Event()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        writer.close()  # the thread reads the end


def _watch(reader: socket.socket, over: threading.Event) -> None:
    """Count the signals, and leave when there are enough unless the block has ended."""
    heard: list[int] = []
    with reader:
        while len(heard) < PATIENCE.signals:
            numbers = reader.recv(64)
            if not numbers:
                return
            heard += [number for number in numbers if number in USUAL]
    if over.is_set():
        return
    again = len(heard) > 1
    end_now(
        heard[-1], "\njscale: ended at once; what was saved stands" if again else told(heard[-1])
    )


@contextmanager
def second_is_ours() -> Iterator[None]:
    """A block, inside of `signals_end`, whose own handlers hear a second signal too."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


def end_now(signum: int, said: str) -> NoReturn:
    """End this process by its own hand, whatever else it is doing."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), SHOW_CURSOR.encode())
    os.write(2, f"{said}\n".encode())
    os._exit(status(signum))
