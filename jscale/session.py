"""A run opened: folder taken, recipe agreed on, data read, state restored or made."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import jax

from jscale import train
from jscale.checkpoint import steps
from jscale.checkpoint.agreement import first_decides
from jscale.checkpoint.store import Store
from jscale.data.corpus import Corpus
from jscale.environment import environment
from jscale.errors import CheckpointError, ConfigError
from jscale.prepare import real_mesh, task_of
from jscale.recipe import Recipe
from jscale.resume import agree, check_data
from jscale.runfolder import RunFolder, atomic_write

Phase = Callable[[str], AbstractContextManager[None]]
Work = Callable[[int, int, str], None]


class Session:
    """The parts of an opened run; closing it gives the folder back.

    `notes` says, in sentences, what the user should know about how it was opened.

    Raises:
        UserError: the recipe, its data, or what is in the folder cannot be used.
    """

    def __init__(self, recipe: Recipe, path: Path, phase: Phase, work: Work | None) -> None:
        self.recipe = recipe
        self.notes: list[str] = []
        with ExitStack() as undo:
            # All that can be found wrong without reading data or running a program comes first.
            self.mesh, reason = real_mesh(recipe)
            self.task = task_of(recipe, self.mesh)
            like = train.shapes(self.task)
            self.folder = undo.enter_context(RunFolder(path))
            changes = agree(self.folder, recipe)
            with phase("reading the data"):
                self.corpus = open_corpus(recipe, work)
            self.store = undo.enter_context(Store(self.folder.checkpoints, recipe.checkpoints))
            size = f"{self.task.model.size / 1e6:.2f} M parameters"
            self.notes.append(f"{size} on {self.mesh.devices.size} device(s), mesh {reason}")
            self.notes += [*changes, *map(str, self.corpus.summary()["notices"])]
            self.state = self._restore(like, phase) or self._start(phase)
            first_decides(self._describe)
            self._held = undo.pop_all()

    def _start(self, phase: Phase) -> train.State:
        with phase("making the model"):
            return train.init(self.task, jax.random.key(self.recipe.seed))

    def _restore(self, like: train.State, phase: Phase) -> train.State | None:
        """The newest sound checkpoint; None in a new run."""
        if not first_decides(lambda: begun(self.folder.checkpoints)):
            return None
        with phase("restoring"):
            restored = self.store.restore(like)
        check_data(restored.note, self.corpus)
        for aside in restored.set_aside:
            self.notes.append(f"step {aside.step} is damaged ({aside.reason}): {aside.path}")
        self.notes.append(f"going on from step {restored.step}")
        return restored.state

    def _describe(self) -> None:
        """Write what the run runs on and what it reads."""
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


def begun(checkpoints: Path) -> bool:
    """Whether there are checkpoints to go on from.

    Raises:
        CheckpointError: there were, and all of them have been set aside as damaged.
    """
    if steps.folders(checkpoints):
        return True
    aside = checkpoints / "damaged"
    if aside.is_dir() and any(aside.iterdir()):
        raise CheckpointError(
            f"{checkpoints} holds no sound checkpoint, only damaged ones (in {aside}); move the run"
            " away, or start anew in another folder with --run"
        )
    return False


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
