"""A run opened: folder taken, recipe agreed on, data read, state restored or made."""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jscale import train
from jscale.checkpoint.agreement import first_decides, said
from jscale.checkpoint.names import named_leaves
from jscale.checkpoint.store import Store
from jscale.config.data import to_data
from jscale.data.dataset import Dataset
from jscale.errors import CheckpointError, ConfigError
from jscale.evaluation.examination import open_tasks
from jscale.evaluation.heldout import why_no_bytes
from jscale.evaluation.task import Questions
from jscale.explain import as_data, dispatches_of, explain_task
from jscale.mesh import MeshShape
from jscale.models.model import Model
from jscale.prepare import Choice, real_mesh, task_of
from jscale.recipe import Recipe, check_vocabulary
from jscale.run.environment import environment
from jscale.run.resume import agree, begun, check_data
from jscale.run.runfolder import RunFolder, atomic_write, writing
from jscale.run.sameness import check_same, check_same_program
from jscale.signals import aside

Phase = Callable[[str], AbstractContextManager[None]]
Work = Callable[[int, int, str], None]


class Session:
    """The parts of an opened run; closing it gives the folder back.

    `notes` says, in sentences, what the user should know about how it was opened; `note` is what
    was saved with the state, if it was restored. Bad data leave no folder behind.

    Raises:
        UserError: the recipe, its data, or what is in the folder cannot be used.
    """

    def __init__(self, recipe: Recipe, path: Path, phase: Phase, work: Work | None) -> None:
        self.recipe = recipe
        self.notes: list[str] = []
        self.note: Mapping[str, Any] = {}
        with ExitStack() as undo:
            # All that can be found wrong without reading data or running a program comes first.
            check_same_program(recipe)
            self.mesh, reason = real_mesh(recipe)
            self.choice = Choice(MeshShape(**self.mesh.shape), reason)
            check_every_process_is_used(self.mesh)
            self.task = task_of(recipe, self.mesh)
            like = train.shapes(self.task)
            new = first_decides(lambda: is_new(path))
            if not new:  # refused before anything is read, if it is in use or another recipe's
                changes = self._take(path, undo)
            with phase("reading the data"):
                self.corpus = open_together(recipe, work)
                self.questions = open_questions(recipe, self.corpus)
            if new:
                changes = self._take(path, undo)
            self.store = undo.enter_context(Store(self.folder.checkpoints, recipe.checkpoints))
            size = f"{self.task.model.size / 1e6:.2f} M parameters"
            where = f"{self.mesh.devices.size} device(s)"
            if jax.process_count() > 1:
                where += f" of {jax.process_count()} processes"
            self.notes.append(f"{size} on {where}, mesh {reason}")
            self.notes += announced(self.task.model)
            ways = dispatches_of(self.task, recipe.data)
            # What one machine has measured, another may not have.
            check_same({"way to experts": [way.partition(" (")[0] for way in ways]})
            self.notes += ways
            self.notes += [*changes, *map(str, self.corpus.summary()["notices"])]
            if recipe.evaluation and self.corpus.heldout and (why := why_no_bytes(self.corpus)):
                self.notes.append(f"evaluation without bits per byte: {why}")
            self.state = self._restore(like, phase) or self._start(phase)
            hosts = said(socket.gethostname())
            first_decides(lambda: self._describe(list(hosts.values())))
            self._held = undo.pop_all()

    def _take(self, path: Path, undo: ExitStack) -> list[str]:
        self.folder = undo.enter_context(RunFolder(path))
        return agree(self.folder, self.recipe)

    def _start(self, phase: Phase) -> train.State:
        with phase("making the model"):
            key = jax.random.key(self.recipe.seed)
            return aside(lambda: jax.block_until_ready(train.init(self.task, key)))

    def _restore(self, like: train.State, phase: Phase) -> train.State | None:
        """The newest sound checkpoint; None in a new run."""
        if not first_decides(lambda: begun(self.folder.checkpoints)):
            return None
        with phase("restoring"):
            restored = self.store.restore(like)
        check_data(restored.note, self.corpus)
        for bad in restored.set_aside:
            self.notes.append(f"step {bad.step} is damaged ({bad.reason}): it is now in {bad.path}")
        self.notes.append(f"going on from step {restored.step}")
        self.note = restored.note
        return restored.state

    def _describe(self, hosts: list[str]) -> None:
        """Write what is trained, what it runs on (the host of each process) and what it reads."""
        atomic_write(self.folder.recipe, json.dumps(to_data(self.recipe), indent=2) + "\n")
        with writing(self.folder.path):
            self.corpus.tokenizer.save(self.folder.path)
        processes = [device.process_index for device in self.mesh.devices.flat]
        layout = {**as_data(explain_task(self.task, self.choice)), "processes": processes}
        atomic_write(self.folder.layout, json.dumps(layout, indent=1) + "\n")
        about = {
            **environment(),
            "hosts": hosts,
            "mesh": dict(self.mesh.shape),
            "parameters": self.task.model.size,
            "data": self.corpus.summary(),
        }
        text = json.dumps(about, indent=2, default=str)
        atomic_write(self.folder.environment, text + "\n")

    @property
    def about(self) -> dict[str, Any]:
        """What this start runs on, in short, for `starts.json`."""
        devices = self.mesh.devices
        return {
            "devices": {"count": devices.size, "kind": devices.flat[0].device_kind},
            "processes": jax.process_count(),
            "mesh": dict(self.mesh.shape),
        }

    def close(self) -> None:
        """Wait for the last save and give the folder back.

        Raises:
            CheckpointError: the last save failed; earlier steps are intact.
        """
        self._held.close()


def announced(model: Model) -> Iterator[str]:
    """What of a model does not learn, or not as one may think, as sentences."""
    still = named_leaves(model.unlearned(model.shapes))
    frozen = {name: shape.size for name, shape in still.items() if name not in model.steered}
    if frozen:
        count, names = sum(frozen.values()), ", ".join(list(frozen)[:4])
        more = f" and {len(frozen) - 4} more" if len(frozen) > 4 else ""
        of_experts = " (experts are among them)" if any("/expert/" in n for n in frozen) else ""
        share = f"{count / 1e6:.2f} M of {model.size / 1e6:.2f} M parameters"
        yield f"frozen: {share}, {len(frozen)} weight(s): {names}{more}{of_experts}"
    if unmoved := [name for name, rate in model.steered.items() if not rate]:
        yield f"corrections of experts stay as they are: {', '.join(unmoved[:4])}"
    yield from model.warnings


def is_new(path: Path) -> bool:
    """Whether a run's folder is still to be made, and can be. Nothing is made yet.

    Raises:
        CheckpointError: it could not be made.
    """
    if os.path.lexists(path):
        return False
    parent = next(above for above in path.absolute().parents if above.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise CheckpointError(
            f"{path} cannot be made: {parent} is not a folder that can be written; choose another"
            " place with --run"
        )
    return True


def check_every_process_is_used(mesh: Mesh) -> None:
    """Check that each process of the job has a device in the mesh.

    Raises:
        ConfigError: one has none, and could neither compute nor save anything.
    """
    used = {device.process_index for device in mesh.devices.flat}
    idle = sorted(set(range(jax.process_count())) - used)
    if idle:
        raise ConfigError(
            f"the mesh uses {mesh.devices.size} of {jax.device_count()} devices and none of process"
            f" {', '.join(map(str, idle))}: start {len(used)} process(es), or make the mesh larger"
        )


def open_together(recipe: Recipe, work: Work | None) -> Dataset:
    """The recipe's data on every process: the first one tokenizes, the others find it done.

    Where they do not share the cache, each of them tokenizes what the first one has found good.

    Raises:
        DataError: they cannot be read.
        ConfigError: the tokenizer has more tokens than the model; processes have read other data.
    """
    opened: list[Dataset] = []
    first_decides(lambda: opened.append(open_corpus(recipe, work)))
    corpus = opened[0] if opened else open_corpus(recipe, work)
    check_same({"data": {"fingerprint": corpus.fingerprint}})
    return corpus


def open_questions(recipe: Recipe, corpus: Dataset) -> dict[str, Questions]:
    """The tasks of the recipe's evaluation, read before anything is trained.

    Raises:
        DataError: a file cannot be read, or a question does not fit.
    """
    tasks = recipe.evaluation.tasks if recipe.evaluation else ()
    return open_tasks(tasks, corpus.tokenizer, recipe.data.length)


def open_corpus(recipe: Recipe, work: Work | None) -> Dataset:
    """The recipe's data, read and tokenised.

    Raises:
        DataError: they cannot be read.
        ConfigError: the tokenizer has more tokens than the model.
    """
    corpus = recipe.data.open(recipe.seed, work)
    check_vocabulary(recipe.model, corpus.tokenizer.vocab)
    return corpus
