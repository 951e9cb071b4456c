"""A second Ctrl-C or SIGTERM ends the process, even while it is deep in native code.

Python hears signals only between its own instructions, and a step or a compilation may take
minutes. Here the interpreter writes each signal's number into a socket as it arrives, and a thread
reads them and leaves at the second. What was saved stands: a step is committed by one rename or not
at all.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75}
SHOW_CURSOR = "\x1b[?25h"  # a living progress line hides it


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """A block that two signals end for certain. In the main thread of a program of ours alone: it
    must not be used where another program (a notebook) owns the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    over = threading.Event()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, args=(reader, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        writer.close()  # the thread reads the end


def watch(reader: socket.socket, over: threading.Event) -> None:
    """Count the signals, and leave at the second one unless the block has ended."""
    heard: list[int] = []
    with reader:
        while len(heard) < 2:
            numbers = reader.recv(64)
            if not numbers:
                return
            heard += [number for number in numbers if number in STATUS]
    if over.is_set():
        return
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), SHOW_CURSOR.encode())
    os.write(2, b"\njscale: ended at once; the last saved step stands\n")
    os._exit(STATUS[signal.Signals(heard[-1])])
