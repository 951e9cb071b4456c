"""Saving a run's whole state, in the background, without ever harming what was saved before."""

import importlib.metadata
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jscale.checkpoint import fingerprint, steps
from jscale.checkpoint.agreement import first_decides
from jscale.checkpoint.lease import Lease
from jscale.checkpoint.names import named_leaves
from jscale.checkpoint.note import ArrayNote, Damaged, Note, encode
from jscale.checkpoint.orbax_border import Writer, is_disk_full, told
from jscale.checkpoint.policy import Checkpoints
from jscale.checkpoint.restore import Restored, restore
from jscale.checkpoint.sizes import readable
from jscale.errors import CheckpointError

CLOCK_STEPS = 16  # processes agree on the time once in so many steps, for a broadcast is not free
SPARE = 1.05  # room asked for on the disk, over the bytes of the arrays


class Store:
    """The steps of one run: saved atomically and in the background, restored strictly.

    Made and used by all processes alike; the first one holds the folder's lease (`Lease`), looks,
    moves and deletes. Usable as a context manager; leaving it waits for the last save.

    Raises:
        CheckpointError: the folder is in use by another run or cannot be written.
    """

    def __init__(self, folder: Path, policy: Checkpoints) -> None:
        self.folder, self.policy = Path(folder).absolute(), policy
        self._held = ExitStack()
        self._writer: Writer | None = None
        first_decides(self._take)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saved_at, self._saved_step = time.monotonic(), 0

    def due(self, step: int) -> bool:
        """Whether the policy asks for a save at this step. All processes must ask at every step."""
        if step == self._saved_step:  # at the start 0: a fresh state is not worth a save
            return False
        if step % self.policy.every == 0:
            return True
        if self.policy.minutes is None or (jax.process_count() > 1 and step % CLOCK_STEPS):
            return False
        late = time.monotonic() - self._saved_at >= 60 * self.policy.minutes
        return bool(first_decides(lambda: late))

    def save(self, step: int, state: PyTree, note: Mapping[str, Any] | None = None) -> None:
        """Begins to save a state and a note (plain JSON) as one unit, and returns.

        Blocks while the arrays are copied to the host, and for an earlier save that is not done;
        the state may be donated afterwards. Python numbers and NumPy arrays are saved as JAX would
        hold them. What goes wrong later is raised by the next `poll`, `save`, `wait` or `close`.

        Raises:
            CheckpointError: the earlier save failed (then this one is not begun); the step is there
                already; the disk has no room; an array has a dtype that cannot be saved.
        """
        self.wait()
        arrays = {name: _array(leaf) for name, leaf in named_leaves(state).items()}
        plan = self._note(step, arrays, note or {})
        first_decides(lambda: self._admit(plan))
        sums = fingerprint.start(arrays)
        try:
            self._writer = self._writer or Writer(self.folder)
            response = self._writer.start(plan, arrays, sums)
        except Exception as error:
            self._abandon()
            raise self._failure(plan, error) from error
        self._saved_at, self._saved_step = time.monotonic(), step
        self._pending = self._thread.submit(self._finish, self._writer, response, plan)

    def poll(self) -> bool:
        """Whether no save is under way; raises what went wrong with the last one. Costs nothing.

        Raises:
            CheckpointError: the last save failed; earlier steps are intact.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is None

    def wait(self) -> None:
        """Waits for the save under way to be committed and for old steps to be removed.

        Raises:
            CheckpointError: that save failed; earlier steps are intact.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except CheckpointError:
            self._abandon()
            raise

    def steps(self) -> list[int]:
        """The committed and complete steps, ascending; their arrays are not read."""
        return first_decides(lambda: list(steps.whole(self.folder)))

    def latest(self) -> int | None:
        """The newest of `steps`, or None."""
        return max(self.steps(), default=None)

    def restore(self, like: PyTree, step: int | None = None) -> Restored:
        """The newest sound step, or the given one, in the shape and layout of `like`.

        As `jscale.checkpoint.restore.restore`; damaged newer steps are moved to `damaged/`.

        Raises:
            CheckpointError: no sound step, or arrays that differ (a table is in the message).
        """
        self.wait()
        restored = restore(self.folder, like, step, away=steps.set_aside)
        self._saved_at, self._saved_step = time.monotonic(), restored.step
        self._renew()  # Orbax remembers the folder as it was
        return restored

    def close(self) -> None:
        """Waits for the last save and gives the folder back.

        Raises:
            CheckpointError: the last save failed; earlier steps are intact.
        """
        try:
            self.wait()
        finally:
            self._renew()
            self._thread.shutdown()
            self._held.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # what ended the run is told first

    def _take(self) -> None:
        lease = Lease(self.folder)
        with ExitStack() as undo:
            undo.callback(lease.close)
            steps.sweep(self.folder)
            self._held = undo.pop_all()

    def _note(self, step: int, arrays: Mapping[str, jax.Array], note: Mapping[str, Any]) -> Note:
        for array in arrays.values():
            fingerprint.word_dtype(array.dtype)
        known = {n: ArrayNote(a.dtype.name, tuple(a.shape), "") for n, a in arrays.items()}
        plan = Note(int(step), time.time(), _versions(), known, note)
        encode(plan)  # what is not plain JSON is an error now, not later in the background
        return plan

    def _admit(self, note: Note) -> None:
        """Refuses a step that exists or has no room; moves a damaged one of that number away."""
        if (self.folder / str(note.step)).exists():
            self._make_way(note.step)
        free, need = shutil.disk_usage(self.folder).free, int(note.bytes * SPARE)
        if free < need:
            raise CheckpointError(
                f"step {note.step} is not saved: {self.folder} has {readable(free)} free and it "
                f"needs {readable(need)}; earlier steps are intact"
            )

    def _make_way(self, step: int) -> None:
        try:
            steps.read(self.folder, step)
        except Damaged as reason:
            steps.set_aside(self.folder, step, str(reason))
            self._renew()
            return
        raise CheckpointError(
            f"{self.folder} has a step {step} already; continue from it, or give this run a folder "
            "of its own"
        )

    def _finish(self, writer: Writer, response: Any, note: Note) -> None:
        """In the background: waits for the commit, looks at it, then lets old steps go."""
        first = jax.process_index() == 0
        try:
            writer.finish(response)
            if first:
                steps.read(self.folder, note.step)
        except Exception as error:
            raise self._failure(note, error) from error
        if first:
            self._retain()

    def _retain(self) -> None:
        saved = {step: note.saved for step, note in steps.whole(self.folder).items()}
        for step in saved.keys() - self.policy.kept(saved):
            steps.delete(self.folder, step)

    def _failure(self, note: Note, error: BaseException) -> CheckpointError:
        free = shutil.disk_usage(self.folder).free
        cause = "the disk is full" if is_disk_full(error) else told(error)
        return CheckpointError(
            f"step {note.step} could not be saved in {self.folder}: {cause} ({readable(free)} "
            f"free, {readable(note.bytes)} needed); earlier steps are intact"
        )

    def _renew(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _abandon(self) -> None:
        """After a failed save: nothing half written stays, and the next save starts afresh."""
        self._renew()
        if jax.process_index() == 0:
            # Orbax's threads may still write there; what failed first is what is told.
            with suppress(CheckpointError):
                steps.sweep(self.folder)


def _array(leaf: Any) -> jax.Array:
    return leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)


def _versions() -> dict[str, str]:
    packages = ("jscale", "jax", "jaxlib", "orbax-checkpoint", "tensorstore")
    return {name: importlib.metadata.version(name) for name in packages}
