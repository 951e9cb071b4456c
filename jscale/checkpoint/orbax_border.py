"""The border to Orbax: its v1 training.Checkpointer writes, its loader reads, its errors are told.

Left to itself Orbax hides the cause of a failed load behind "incompatible handler", raises the
error of a failed save again at close, and logs both with pages of traceback.
"""

import contextlib
import errno
import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jscale.checkpoint import note as notes
from jscale.checkpoint.fingerprint import Sums
from jscale.checkpoint.note import Note

STRAGGLERS = 0.3  # seconds that are waited for the other arrays of a failed load
DISK_FULL = ("No space left", "RESOURCE_EXHAUSTED", "quota exceeded", "File too large")


class Unreadable(Exception):
    """Orbax could not read arrays; the message is the cause at the root, in one line."""


class Writer:
    """Writes steps one by one in the background; a step appears by one rename or not at all."""

    def __init__(self, folder: Path) -> None:
        from orbax.checkpoint.experimental import v1 as oc

        context = oc.Context()
        # Weights hardly compress: 11 % smaller, 5 times slower, and a bad bit spoils a whole block.
        context.array.saving.use_compression = False
        context.array.saving.use_ocdbt = context.array.saving.use_zarr3 = True  # `load_on_host`
        # Else a folder that cannot be made leaves Orbax's threads waiting for it for 20 minutes.
        context.asynchronous.create_directories_asynchronously = False
        with _quiet():
            self._checkpointer = oc.training.Checkpointer(str(folder), context=context)

    def start(self, note: Note, arrays: Mapping[str, jax.Array], sums: Sums) -> Any:
        """Begins to write a step and returns what `finish` waits for.

        Blocks while the arrays are copied to the host; they may be donated afterwards.
        """
        unit: dict[str, Any] = {"note": _NoteWriter(note, sums)}
        filled = {name: array for name, array in arrays.items() if array.size}
        if filled:  # Orbax stores no empty array; the note is enough for those
            unit["state"] = filled
        with _quiet():
            response = self._checkpointer.save_checkpointables_async(note.step, unit, force=True)
        assert response is not None, "Orbax skipped a forced save"
        return response

    def finish(self, response: Any) -> None:
        """Waits until a step is committed; raises whatever went wrong."""
        with _quiet():
            try:
                response.result()
            except Exception:
                _hush()
                raise

    def close(self) -> None:
        """Lets go of Orbax; an error that was told before is not told again."""
        with _quiet(), contextlib.suppress(Exception):
            self._checkpointer.close()


class _NoteWriter:
    """A note as a part of Orbax's atomic unit; fingerprints are read when the devices are done."""

    def __init__(self, note: Note, sums: Sums) -> None:
        self._note, self._sums = note, sums

    async def save(self, directory: Any) -> Any:
        return self._write(directory)

    async def _write(self, directory: Any) -> None:
        folder = Path(await directory.await_creation())
        if jax.process_index() == 0:
            prints = self._sums.read()
            arrays = {n: replace(a, fingerprint=prints[n]) for n, a in self._note.arrays.items()}
            (folder / notes.FILE).write_text(notes.encode(replace(self._note, arrays=arrays)))

    async def load(self, directory: Any) -> Any:
        raise NotImplementedError("notes are read as files")


def load(step: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Arrays of a step by name, onto the shardings of `wanted`; shapes and dtypes must be right.

    Raises:
        Unreadable: Orbax could not read them or place them.
    """
    from orbax.checkpoint.experimental import v1 as oc

    filled = {name: want for name, want in wanted.items() if want.size}
    arrays = {name: _empty(want) for name, want in wanted.items() if not want.size}
    if filled:
        arrays.update(_reading(oc.Context(), lambda: oc.load(str(step.absolute()), filled)))
    for name, want in wanted.items():  # a bad letter of its metadata makes Orbax leave one out
        if not _fits(arrays.get(name), want):
            raise Unreadable(f"Orbax did not read {name!r}")
    return arrays


def _fits(found: Any, want: jax.ShapeDtypeStruct) -> bool:
    right = isinstance(found, jax.Array) and found.shape == want.shape
    return right and found.dtype == want.dtype and found.sharding == want.sharding


def load_directly(step: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """As `load`, by TensorStore alone: needs none of the files that Orbax writes beside the arrays.

    Slower (one shard at a time), and no process waits for another.

    Raises:
        Unreadable: an array is not there as it should be, or cannot be placed.
    """
    arrays = {}
    for name, want in wanted.items():
        stored = _open(step, name, want.shape, want.dtype.name) if want.size else None
        try:
            arrays[name] = _place(want, stored) if stored is not None else _empty(want)
        except Exception as error:  # of a disk or of a device
            raise Unreadable(told(error)) from None
    return arrays


def load_on_host(step: Path, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """One array of a step in host memory, whatever mesh it was saved from. For one process alone.

    Raises:
        Unreadable: it is not there as it should be.
    """
    if 0 in shape:
        return np.zeros(shape, dtype)
    stored = _open(step, name, shape, dtype)
    try:
        return stored.read().result()
    except ValueError as error:
        raise Unreadable(told(error)) from None


def _open(step: Path, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """A stored array, not yet read; Orbax would wait for all processes here."""
    import tensorstore

    base = {"driver": "file", "path": f"{step.absolute() / 'state'}/"}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "fill_missing_data_reads": False,
    }
    try:
        stored = tensorstore.open(spec, read=True, open=True).result()
    except ValueError as error:
        raise Unreadable(told(error)) from None
    if stored.shape != shape or stored.dtype.name != dtype:
        raise Unreadable(f"it is stored as {stored.dtype.name}{list(stored.shape)}")
    return stored


def _place(want: jax.ShapeDtypeStruct, stored: Any) -> jax.Array:
    read = lambda index: stored[index].read().result()
    return jax.make_array_from_callback(want.shape, want.sharding, read)


def told(error: BaseException) -> str:
    """The cause at the root of an error of Orbax, in one line."""
    root = _chain(error)[-1]
    lines = str(root).strip().splitlines()
    text = lines[0].split(" [")[0] if lines else ""  # TensorStore appends its specification
    return (text if len(text) <= 200 else f"{text[:200]}...") or type(root).__name__


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or any that led to it, says that the disk has no more room."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(
        getattr(link, "errno", None) in codes or any(sign in str(link) for sign in DISK_FULL)
        for link in _chain(error)
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it came from, and so on to the root."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _empty(want: jax.ShapeDtypeStruct) -> jax.Array:
    zeros = np.zeros(want.shape, want.dtype)
    return jax.make_array_from_callback(want.shape, want.sharding, lambda index: zeros[index])


def _reading(context: Any, load: Callable[[], Any]) -> Any:
    """Reads the named arrays alone; that none is forgotten is our own comparison's task.

    No `with` of a caller: it would keep the error, and by it the stragglers, alive past this.
    """
    context.pytree.loading.partial_load = True
    with _quiet(), _stragglers_ignored(), context:
        try:
            return load()
        except Exception as error:  # Orbax raises many kinds
            cause = told(error)
        time.sleep(STRAGGLERS)
        gc.collect()
    raise Unreadable(cause)


@contextlib.contextmanager
def _stragglers_ignored() -> Iterator[None]:
    """Lets the other arrays of a failed load end in silence.

    Orbax closes its event loop at the first bad array and leaves the rest to complain, as
    exceptions that nobody can catch, that their loop is closed and that nobody awaited them.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
            yield
    finally:
        sys.unraisablehook = hook


LOGGERS = [logging.getLogger(name) for name in ("absl", "asyncio", "root")]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from logging what we tell in one sentence ourselves."""
    for logger in LOGGERS:
        logger.addFilter(_not_of_orbax)
    try:
        yield
    finally:
        for logger in LOGGERS:
            logger.removeFilter(_not_of_orbax)


def _hush() -> None:
    """Keeps Orbax silent for good: other threads of a save that failed end later, at files that are
    cleaned away by then."""
    for logger in LOGGERS:
        logger.addFilter(_no_straggler)


def _no_straggler(record: logging.LogRecord) -> bool:
    """As `_not_of_orbax`, which the end of any `_quiet` takes away."""
    return _not_of_orbax(record)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in f"{record.pathname} {record.msg}"
