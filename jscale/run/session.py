"""A run opened: folder taken, recipe agreed on, data read, state restored or made."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import jax

from jscale import train
from jscale.checkpoint.agreement import first_decides
from jscale.checkpoint.store import Store
from jscale.config.data import to_data
from jscale.data.corpus import Corpus
from jscale.errors import CheckpointError, ConfigError
from jscale.prepare import real_mesh, task_of
from jscale.recipe import Recipe
from jscale.run.environment import environment
from jscale.run.resume import agree, begun, check_data
from jscale.run.runfolder import RunFolder, atomic_write, writing
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
            self.mesh, reason = real_mesh(recipe)
            self.task = task_of(recipe, self.mesh)
            like = train.shapes(self.task)
            new = first_decides(lambda: is_new(path))
            if not new:  # refused before anything is read, if it is in use or another recipe's
                changes = self._take(path, undo)
            with phase("reading the data"):
                self.corpus = open_corpus(recipe, work)
            if new:
                changes = self._take(path, undo)
            self.store = undo.enter_context(Store(self.folder.checkpoints, recipe.checkpoints))
            size = f"{self.task.model.size / 1e6:.2f} M parameters"
            self.notes.append(f"{size} on {self.mesh.devices.size} device(s), mesh {reason}")
            self.notes += [*changes, *map(str, self.corpus.summary()["notices"])]
            self.state = self._restore(like, phase) or self._start(phase)
            first_decides(self._describe)
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

    def _describe(self) -> None:
        """Write what is trained, what it runs on and what it reads."""
        atomic_write(self.folder.recipe, json.dumps(to_data(self.recipe), indent=2) + "\n")
        with writing(self.folder.path):
            self.corpus.tokenizer.save(self.folder.path)
        about = {
            **environment(),
            "mesh": dict(self.mesh.shape),
            "parameters": self.task.model.size,
            "data": self.corpus.summary(),
        }
        text = json.dumps(about, indent=2, default=str)
        atomic_write(self.folder.environment, text + "\n")

    def close(self) -> None:
        """Wait for the last save and give the folder back.

        Raises:
            CheckpointError: the last save failed; earlier steps are intact.
        """
        self._held.close()


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


def open_corpus(recipe: Recipe, work: Work | None) -> Corpus:
    """The recipe's data, read and tokenised.

    Raises:
        DataError: they cannot be read.
        ConfigError: the tokenizer has more tokens than the model.
    """
    corpus = recipe.data.open(recipe.seed, work)
    vocab, tokens = getattr(recipe.model, "vocab", None), corpus.tokenizer.vocab
    if isinstance(vocab, int) and tokens > vocab:
        raise ConfigError(
            f"the tokenizer has {tokens} tokens and model.vocab={vocab}: make model.vocab at least"
            f" {tokens}"
        )
    return corpus
