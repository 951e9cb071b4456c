"""A model out of a run's folder, by what is written there and by nothing else."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from jscale import train
from jscale.checkpoint.restore import restore
from jscale.config.data import Filled, read, told
from jscale.data.dataset import Dataset
from jscale.data.tokenizers import Tokenizer
from jscale.errors import CheckpointError
from jscale.evaluation.heldout import heldout_means
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import EvaluationTask, Result
from jscale.evaluation.trained import subject_of
from jscale.models.model import Model, Params
from jscale.prepare import real_mesh, task_of
from jscale.recipe import Recipe
from jscale.run.session import open_corpus


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its recipe, its tokenizer, and the step that it comes from."""

    recipe: Recipe
    task: train.Task
    params: Params
    tokenizer: Tokenizer
    step: int
    notes: tuple[str, ...] = ()  # what the user should know of how it was opened
    folder: Path = Path()

    @property
    def model(self) -> Model:
        return self.task.model

    @property
    def subject(self) -> Subject:
        """The model as one that is examined."""
        return subject_of(self.recipe, self.task, self.params, self.tokenizer)

    def corpus(self) -> Dataset:
        """The data of the recipe, whose paths mean the folder in which the run was last started.

        Raises:
            DataError: they cannot be read.
        """
        with contextlib.chdir(started_in(self.folder)):
            return open_corpus(self.recipe, None)

    def evaluate(self, batches: int | None = None) -> dict[str, float]:
        """The means over the held-out text of the run's data, or over so many batches of it.

        Raises:
            ConfigError: the recipe holds nothing out.
            DataError: its data cannot be read.
        """
        return heldout_means(self.task, self.params, self.corpus(), batches)

    def examine(self, task: EvaluationTask) -> Result:
        """What comes out of a task: its numbers, and what was predicted for each question.

        Raises:
            DataError: its file cannot be read, or a question does not fit.
        """
        return task.open(self.tokenizer, self.recipe.data.length).ask(self.subject)


def open_run(folder: Path, step: int | None = None, allow: Iterable[ModuleType] = ()) -> Run:
    """The run in a folder, at its newest sound checkpoint or the given one, on this machine.

    The mesh is the recipe's own if there are enough devices for it, else a sensible one for those.
    No code of the folder is executed: its recipe may use jscale's own types and those of the
    modules in `allow`. Nothing is written, and a run that is training may be read.

    Raises:
        CheckpointError: the folder is no run, or holds no sound checkpoint.
        ConfigError: its recipe uses a type that is not allowed.
    """
    recipe_file = folder / "recipe.json"
    if not recipe_file.is_file():
        raise CheckpointError(f"{folder} is not the folder of a run: it has no recipe.json")
    filled: list[Filled] = []
    recipe = read(recipe_file, allow, filled)
    if not isinstance(recipe, Recipe):
        raise CheckpointError(f"{recipe_file} holds a {type(recipe).__name__}, not a Recipe")
    notes: list[str] = told(recipe_file, filled)
    task = task_of(recipe, real_mesh(fitting(recipe, notes))[0])
    restored = restore(folder / "checkpoints", train.shapes(task), step)
    state: train.State = restored.state
    notes += [f"step {bad.step} is damaged ({bad.reason})" for bad in restored.set_aside]
    params = train.evaluation_params(task.model, recipe.optimizer, state)
    tokenizer = Tokenizer.load(folder)
    return Run(recipe, task, params, tokenizer, restored.step, tuple(notes), folder)


def started_in(folder: Path) -> Path:
    """The folder in which a run was started last, as far as it is known and still there."""
    try:
        where = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return Path.cwd()
    return Path(where) if isinstance(where, str) and Path(where).is_dir() else Path.cwd()


def fitting(recipe: Recipe, notes: list[str]) -> Recipe:
    """The recipe, with another mesh where its own needs more devices than there are."""
    from jscale.mesh.devices import devices

    if recipe.mesh == "auto" or recipe.mesh.devices <= len(devices()):
        return recipe
    notes.append(f"trained on a mesh of {recipe.mesh.devices} devices; here are {len(devices())}")
    return replace(recipe, mesh="auto")
