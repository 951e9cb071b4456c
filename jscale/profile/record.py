"""Some training steps under JAX's profiler: the loop of a run, without a run's folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jscale import train
from jscale.compiled import Compilation, Compiled, short
from jscale.errors import CheckpointError, ConfigError
from jscale.metrics.fetch import Pending
from jscale.profile.summary import Timing
from jscale.run.runfolder import writing

WARM = 3  # steps before the trace begins: caches fill, threads and queues start
LEFT_BY_US = {"plugins", "profile.json", "step.hlo.txt"}


class Recording(NamedTuple):
    """The compiled step that ran, what the host measured, and the folder with the trace."""

    program: Any
    timing: Timing
    folder: Path


def check_folder(folder: Path) -> None:
    """Whether a trace may be written to a folder: a new one, an empty one, or one of a profile.

    Raises:
        ConfigError: there is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; name a folder to put the profile in")
    others = {path.name for path in folder.iterdir()} - LEFT_BY_US if folder.is_dir() else set()
    if others:
        raise ConfigError(
            f"--out {folder} holds other things ({', '.join(sorted(others)[:3])}); name a new or"
            " empty folder, or that of an earlier profile"
        )


def check_steps(steps: int) -> None:
    """Whether so many steps can be traced.

    Raises:
        ConfigError: there are none, or more than a trace can hold.
    """
    if not 1 <= steps <= 1000:
        raise ConfigError(f"--steps takes a number from 1 to 1000, not {steps}")


def record(
    task: train.Task, state: train.State, batches: Iterator[PyTree], steps: int, folder: Path
) -> Recording:
    """Train a few warm steps and then `steps` under the profiler, whose trace goes to `folder`.

    Raises:
        ConfigError: fewer than one step, or the folder holds other things.
        CheckpointError: the trace cannot be written.
    """
    check_steps(steps)
    check_folder(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    told: list[Compilation] = []
    batch = next(batches)
    program = Compiled(train.make_step(task), told.append).compile(state, batch)
    for _ in range(WARM):
        state, metrics = program(state, batch)
        batch = next(batches)
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # of every Python call: it would slow the host that is measured
    jax.profiler.start_trace(str(folder), create_perfetto_trace=True, profiler_options=options)
    try:
        seconds, waited = _steps(program, state, batches, steps)
    finally:
        with _writing_trace(folder):
            jax.profiler.stop_trace()
    return Recording(program, Timing(steps, seconds, waited, told[0].seconds), folder)


@contextmanager
def _writing_trace(folder: Path) -> Iterator[None]:
    """A block in which the profiler writes; what it cannot write becomes a sentence.

    Raises:
        CheckpointError: there is no room or no permission.
    """
    try:
        with writing(folder):
            yield
    except jax.errors.JaxRuntimeError as error:
        why = short(str(error))
        raise CheckpointError(f"the trace cannot be written into {folder}: {why}") from error


def _steps(
    program: Any, state: train.State, batches: Iterator[PyTree], steps: int
) -> tuple[float, float]:
    """Seconds for so many steps, and how many of them went by waiting for batches."""
    pending, waited = Pending(), 0.0
    begun = time.perf_counter()
    for step in range(steps):
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            with jax.profiler.TraceAnnotation("waiting for data"):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
            state, metrics = program(state, batch)
            pending.push(step, metrics)
            pending.ready()
    jax.block_until_ready(state)
    return time.perf_counter() - begun, waited
