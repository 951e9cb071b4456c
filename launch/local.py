"""Several processes on this machine, as one: their start, their output, their end.

Each is a `jscale train` that joins the job (`jscale.launch.join`). One that dies takes the others
with it, for JAX cannot go on without it; a signal is passed on to all of them, and they agree on a
step to stop at. Whatever happens to the launcher, none of its processes outlives it.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from jscale.checkpoint.lease import Lease
from jscale.errors import CheckpointError, PeerError
from jscale.launch.interrupts import second_is_ours
from jscale.launch.join import LIFELINE, Place, signals_held
from jscale.run.runfolder import writing
from jscale.signals import status as status_after

LOOK = 0.05  # seconds between two looks at the processes
SETTLE = 1.0  # seconds in which the others may end by the same mistake, after the first one failed
LEAVE = 60.0  # seconds that the others have to end, after the first one ended well
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
LINES = 12  # of a log that are shown
HANGING = 124  # the status given to a process that did not end though the others had
STOPPED = (130, 75)  # the statuses of a process that was asked to stop and did
REFUSED = (64, 65, 66)  # the statuses of one that has found a mistake, and said it
TOLD = (*REFUSED, 70, 72, 73)  # of one that has said why it failed
AGAIN = "run it again to go on from the last saved step"
COUNT = re.compile(r"--xla_force_host_platform_device_count=\S+")
SENTENCE = re.compile(r"^jscale: error: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """What is to be run: the words after `jscale` of each process, how many, and the run's folder.

    `devices` is how many each of them simulates.
    """

    words: tuple[str, ...]
    processes: int
    devices: int
    folder: Path

    def place(self, process: int, port: int) -> Place:
        return Place(f"127.0.0.1:{port}", self.processes, process)

    def log(self, process: int) -> Path:
        """Where the output of a process goes that is not the first: that one's is shown."""
        return self.folder / "logs" / f"process_{process}.txt"

    def shown(self, port: int) -> list[str]:
        """The commands, as one would type them."""
        command = shlex.join(["jscale", *self.words])
        lines = []
        for process in range(self.processes):
            told = {**self.place(process, port).environment, "NPROC": threads(self.devices)}
            sets = " ".join(f"{name}={value}" for name, value in told.items())
            log = f" >> {shlex.quote(str(self.log(process)))} 2>&1" if process else ""
            lines.append(f"{sets} {command}{log} &")
        return lines


def threads(devices: int) -> str:
    """XLA's threads in a process of so many simulated devices: with few, collectives dead-lock."""
    told = os.environ.get("NPROC", "")
    return str(max(32, 2 * devices, int(told) if told.isdigit() else 0))


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of this machine that stays ours: one that is taken makes JAX crash.

    JAX listens on it with SO_REUSEPORT, and so may share it with the socket that holds it here.
    """
    with socket.socket() as holder:
        if hasattr(socket, "SO_REUSEPORT"):
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def run(job: Job) -> int:
    """Start the processes, watch over them to their end, and return the job's exit status.

    Raises:
        CheckpointError: there is no place for their logs.
    """
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(reserved_port())
        line, held = os.pipe()  # when `held` is closed, which it is if we die, they end
        stack.callback(os.close, line)
        stack.callback(os.close, held)
        left = stack.enter_context(Leftover.of(job.folder))
        running = Running(job)
        with running:
            running.open_logs()
            for process in range(job.processes):
                running.start(process, port, line)
            running.wait()
        status = running.verdict()
        left.refused = running.asked is not None or status in REFUSED
    return status


@dataclass
class Leftover:
    """The folder of a run that was to be new: if the run is refused, nothing is left of it."""

    folder: Path
    made: tuple[Path, ...]  # folders that were not there before, the innermost first
    refused: bool = True  # until it is known

    @classmethod
    @contextlib.contextmanager
    def of(cls, folder: Path) -> Iterator["Leftover"]:
        """A block in which a job makes the folder or finds it."""
        above = (folder, *folder.parents)
        left = cls(folder, tuple(path for path in above if not os.path.lexists(path)))
        try:
            yield left
        finally:
            if left.made and left.refused:
                left.clear()

    def clear(self) -> None:
        """Remove the folder if there are only logs and the lock of a run that was never begun."""
        with contextlib.suppress(OSError, CheckpointError):
            if {path.name for path in self.folder.iterdir()} <= {"logs", "lock"}:
                with Lease(self.folder):  # another run may have come in the meantime
                    shutil.rmtree(self.folder)
            for path in self.made[1:]:
                path.rmdir()


class Running:
    """The processes of a job, from their start to their end; leaving it, none is left."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.children: list[subprocess.Popen[bytes]] = []
        self.logs: dict[int, IO[bytes]] = {}
        self.begins: dict[int, int] = {}  # where the lines of this start begin in them
        self.ended: dict[int, int] = {}  # the statuses of those that ended by themselves, in order
        self.asked: int | None = None
        self._stack = contextlib.ExitStack()

    def open_logs(self) -> None:
        """Open the log of every process but the first.

        Raises:
            CheckpointError: there is no place for them.
        """
        for process in range(1, self.job.processes):
            path = self.job.log(process)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                log = self._stack.enter_context(path.open("ab"))
                log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
                log.flush()
            self.logs[process], self.begins[process] = log, log.tell()

    def start(self, process: int, port: int, line: int) -> None:
        """Start one, unless all have been asked to stop."""
        out = self.logs.get(process)
        with signals_held():
            if self.asked is not None:
                return
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "jscale.launch.cli", *self.job.words],
                env=environment(self.job, process, port, line),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(line,),
                start_new_session=True,  # a terminal's Ctrl-C is for us to pass on, once
            )
            self.children.append(child)

    def wait(self) -> None:
        """Until all have ended: by themselves, or because one that failed has to end the others."""
        since: float | None = None  # when the first of them ended
        while any(child.poll() is None for child in self.children):
            self._note_ended()
            if self.ended and since is None:
                since = time.monotonic()
            if since is not None and time.monotonic() - since > self._patience():
                break
            time.sleep(LOOK)
        self._note_ended()
        if len(self.ended) < len(self.children) and not any(self.ended.values()):
            late = [p for p in range(len(self.children)) if p not in self.ended]
            self.ended[late[0]] = HANGING

    def verdict(self) -> int:
        """The exit status of the job; says on standard error what nobody has said."""
        if not any(self.ended.values()):  # none at all, where it was stopped before the first
            return 0 if self.asked is None or self.ended else status_after(self.asked)
        process = cause(self.ended)
        status = self.ended[process]
        if self.asked is not None and (status <= 0 or status in (*STOPPED, PeerError.status)):
            if status not in STOPPED:
                complain(f"ended before it could save; {AGAIN}")
            return status if status in STOPPED else status_after(self.asked)
        self._explain(process, status)
        return status if status > 0 else 128 - status if status else PeerError.status

    def __enter__(self) -> "Running":
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._hear)
            self._stack.callback(signal.signal, number, before)
        self._stack.enter_context(second_is_ours())
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all()
        self._stack.close()

    def _note_ended(self) -> None:
        for process, child in enumerate(self.children):
            status = child.poll()
            if status is not None:
                self.ended.setdefault(process, status)

    def _patience(self) -> float:
        failed = any(status not in (0, *STOPPED) for status in self.ended.values())
        return SETTLE if failed else LEAVE

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self._send(signal.SIGKILL)
        self.asked = signum
        self._send(signum)

    def _send(self, signum: int) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signum)

    def _end_all(self) -> None:
        """SIGTERM, and SIGKILL to those that are still there some seconds later."""
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        self._send(signal.SIGKILL)
        for child in self.children:
            child.wait()

    def _explain(self, process: int, status: int) -> None:
        name = f"process {process} of {self.job.processes}"
        said = self._said(process)
        sentence = SENTENCE.findall(said)
        if process == 0 and status in (*TOLD, *STOPPED):
            return  # its own words were shown
        if sentence:
            complain(f"{name}: {sentence[-1]}")
        else:
            complain(f"{name} {way(status)}; {AGAIN}")
        if process and not sentence:
            lines = said.splitlines()[-LINES:]
            where = self.job.log(process)
            told = f"the end of {where}:" if lines else f"{where} holds no word of it"
            print(told, *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)

    def _said(self, process: int) -> str:
        if not process:
            return ""
        with self.job.log(process).open("rb") as log:
            log.seek(self.begins[process])
            return log.read().decode("utf-8", "replace")


def way(status: int) -> str:
    """How a process ended, as the end of a sentence about it."""
    if status == 0:
        return "ended before the others, as if all were done"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    said = {
        HANGING: f"did not end {LEAVE:.0f} s after another one had, and was ended",
        PeerError.status: "lost another one, of which nobody says why",
        **dict.fromkeys(STOPPED, "was asked to stop"),
    }
    return said.get(status, f"ended with status {status}")


def cause(ended: Mapping[int, int]) -> int:
    """Which of the processes that ended, given in this order with their statuses, ended the others.

    A lost peer, and JAX's abort for want of one, are consequences: even of a process that ended
    well before the others, for they end together. Of those that failed alike the first process is
    named, for its words were shown.

    >>> cause({1: 71, 2: -9, 0: 71}), cause({2: 64, 0: 64, 1: 64}), cause({1: 0, 0: 71})
    (2, 0, 1)
    """

    def weight(process: int) -> int:
        status = ended[process]
        return {0: 3, PeerError.status: 2, -signal.SIGABRT: 1}.get(status, 0)

    first = min(ended, key=weight)
    earliest = next(iter(ended))
    if weight(first) and ended[earliest] == 0:
        return earliest
    return 0 if ended.get(0) == ended[first] else first


def environment(job: Job, process: int, port: int, line: int) -> dict[str, str]:
    """The environment of a process."""
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    flags = COUNT.sub("", os.environ.get("XLA_FLAGS", "")).strip()
    return {
        **inherited,
        **({"XLA_FLAGS": flags} if flags else {}),
        **job.place(process, port).environment,
        LIFELINE: str(line),
        "NPROC": threads(job.devices),
        "PYTHONUNBUFFERED": "1",
    }


def complain(sentence: str) -> None:
    """Say what went wrong, as every command of ours does."""
    print(f"jscale: error: {sentence}", file=sys.stderr, flush=True)
