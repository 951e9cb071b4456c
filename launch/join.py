"""Becoming one process of a job, and leaving it.

A launcher of ours, or a person on a cluster, says by the environment which job and which process:

    JSCALE_COORDINATOR   host:port of process 0, the same for all
    JSCALE_PROCESSES     how many processes the job has
    JSCALE_PROCESS       which one this is, from 0
    JSCALE_LIFELINE      set by a launcher of ours: a pipe whose other end only that one holds
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from jscale.errors import ConfigError
from jscale.signals import abandoned, aside

NAMES = ("JSCALE_COORDINATOR", "JSCALE_PROCESSES", "JSCALE_PROCESS")
LIFELINE = "JSCALE_LIFELINE"
HELD = (signal.SIGINT, signal.SIGTERM)
STARTING = 300  # seconds that the processes wait for one another at the start
HEARTBEAT = 30  # seconds of silence after which JAX gives a process up, and with it the job
ENDING = 30  # seconds that a process which is done waits for the others to be


@dataclass(frozen=True)
class Place:
    """Which process of which job."""

    coordinator: str
    processes: int
    process: int

    @property
    def environment(self) -> dict[str, str]:
        """How a process is told of it."""
        values = (self.coordinator, str(self.processes), str(self.process))
        return dict(zip(NAMES, values, strict=True))


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place that an environment tells of, or None.

    Raises:
        ConfigError: it tells only a part, or numbers that cannot be.
    """
    found = {name: environment[name] for name in NAMES if environment.get(name)}
    if not found:
        return None
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise ConfigError(f"{next(iter(found))} is set and {missing[0]} is not: set all three")
    coordinator, processes, process = (found[name] for name in NAMES)
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(f"JSCALE_COORDINATOR={coordinator} is not host:port of process 0")
    if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
        raise ConfigError(
            f"JSCALE_PROCESS={process} must be a number from 0 to JSCALE_PROCESSES - 1, and"
            f" JSCALE_PROCESSES={processes} how many processes there are"
        )
    return Place(coordinator, int(processes), int(process))


def join(place: Place | None) -> None:
    """Make this process one of a job: of the given one, or of that which JAX finds out about (from
    Slurm, Open MPI, Kubernetes, a TPU's host). To be called before JAX is asked for a device.

    Raises:
        ConfigError: it is too late, or there is no such job.
    """
    import jax

    from jscale.mesh.devices import prevent_deadlock

    prevent_deadlock()
    keep_native_output_aside()
    # JAX would keep SIGTERM to itself; we stop on it, all at the same step (`jscale.run.stops`).
    jax.config.update("jax_enable_preemption_service", False)
    more = {}
    if place is not None:
        check_port(place)
        more = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
        }
        if place.coordinator.startswith("127."):  # nobody else may come in, and no proxy is asked
            more["coordinator_bind_address"] = place.coordinator
            os.environ["no_grpc_proxy"] = "127.0.0.1"
            jax.config.update("jax_check_proxy_envs", False)
    initialize = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=STARTING,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=ENDING,
        **more,
    )
    try:
        aside(initialize)  # it waits for the others, and a signal is to be heard meanwhile
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"this process cannot join a job: {error}") from error


def check_port(place: Place) -> None:
    """See that process 0 can listen where the others will look for it.

    Raises:
        ConfigError: the port is taken.
    """
    host, _, port = place.coordinator.rpartition(":")
    if place.process:
        return
    with socket.socket() as trial:
        if hasattr(socket, "SO_REUSEPORT"):  # as JAX, and a launcher of ours that keeps it free
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            trial.bind((host if host.startswith("127.") else "", int(port)))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "there is no such port"
            raise ConfigError(
                f"JSCALE_COORDINATOR={place.coordinator}: process 0 cannot listen there:"
                f" {reason}; choose another port"
            ) from error


def keep_native_output_aside() -> None:
    """Give standard output to Python alone: Gloo greets there once for each group of devices."""
    sys.stdout.flush()
    number, nowhere = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    sys.stdout = os.fdopen(os.dup(number), "w", 1, encoding=encoding, errors=errors)
    os.dup2(nowhere, number)
    os.close(nowhere)


def leave() -> None:
    """Leave the job together with the others, which are as far as this process or soon will be."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def end(status: int) -> int:
    """The status, to be returned by a process; one that failed in a job ends here and now.

    Its ordinary end would wait for the other processes, and they may be waiting for it. So does one
    whose native code is still busy with what was abandoned.
    """
    if abandoned():
        end_here(status)
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return status
    if status == 0:
        leave()
        return 0
    end_here(status)


def end_here(status: int) -> NoReturn:
    """End this process without the last acts of Python and of libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """A block in which SIGINT and SIGTERM wait; a process started in it hears none before it is
    ready for them (`hear_signals`), rather than dying of them while it imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_signals() -> None:
    """Hear signals from now on, those that were sent before included."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def die_with_launcher(environment: Mapping[str, str]) -> None:
    """Let this process end by SIGKILL when the launcher that started it does, however it ends."""
    if environment.get(LIFELINE, "").isdecimal():
        line = int(environment[LIFELINE])
        threading.Thread(target=_die_at_end_of, args=(line,), daemon=True).start()


def _die_at_end_of(pipe: int) -> None:
    os.read(pipe, 1)  # nobody writes: this returns when the other end is gone
    os.kill(os.getpid(), signal.SIGKILL)
