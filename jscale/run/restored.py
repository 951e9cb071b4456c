"""A model out of a run's folder, by what is written there and by nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from jscale import train
from jscale.checkpoint.restore import restore
from jscale.config.data import read
from jscale.data.tokenizers import Tokenizer
from jscale.errors import CheckpointError
from jscale.models.model import Model, Params
from jscale.prepare import real_mesh, task_of
from jscale.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its recipe, its tokenizer, and the step that it comes from."""

    recipe: Recipe
    task: train.Task
    params: Params
    tokenizer: Tokenizer
    step: int
    notes: tuple[str, ...] = ()  # what the user should know of how it was opened

    @property
    def model(self) -> Model:
        return self.task.model


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
    recipe = read(recipe_file, allow)
    if not isinstance(recipe, Recipe):
        raise CheckpointError(f"{recipe_file} holds a {type(recipe).__name__}, not a Recipe")
    notes: list[str] = []
    task = task_of(recipe, real_mesh(fitting(recipe, notes))[0])
    restored = restore(folder / "checkpoints", train.shapes(task), step)
    state: train.State = restored.state
    notes += [f"step {bad.step} is damaged ({bad.reason})" for bad in restored.set_aside]
    params = recipe.optimizer.evaluation_params(state.params, state.optimizer)
    return Run(recipe, task, params, Tokenizer.load(folder), restored.step, tuple(notes))


def fitting(recipe: Recipe, notes: list[str]) -> Recipe:
    """The recipe, with another mesh where its own needs more devices than there are."""
    from jscale.mesh.devices import devices

    if recipe.mesh == "auto" or recipe.mesh.devices <= len(devices()):
        return recipe
    notes.append(f"trained on a mesh of {recipe.mesh.devices} devices; here are {len(devices())}")
    return replace(recipe, mesh="auto")
