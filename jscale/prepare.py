"""From a recipe to a task: the model, the mesh, the layout, the optimizer, all checked."""

from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from jscale.data.stream import FIELDS
from jscale.errors import ConfigError
from jscale.mesh import Layout, MeshShape, choose, make_mesh
from jscale.models.model import Model
from jscale.recipe import Recipe
from jscale.train import Task, sharding_of


class Choice(NamedTuple):
    """A mesh and why it is the one."""

    shape: MeshShape
    reason: str


def model_of(recipe: Recipe) -> Model:
    return Model(recipe.model, recipe.precision.compute, recipe.precision.store)


def mesh_of(recipe: Recipe, devices: int) -> Choice:
    """The recipe's mesh, or a sensible one for so many devices.

    Raises:
        ConfigError: no mesh fits the model and the batch.
    """
    if isinstance(recipe.mesh, MeshShape):
        return Choice(recipe.mesh, "named by the recipe")
    model, rows = model_of(recipe), recipe.data.batch // recipe.accumulate
    return Choice(*choose(devices, recipe.rules, model.shapes, model.axes, rows))


def task_of(recipe: Recipe, mesh: Mesh | AbstractMesh) -> Task:
    """Everything that the step is compiled from. Touches no device.

    Raises:
        ConfigError: the model, the rules, the mesh, the batch or the sequence do not fit.
    """
    model, layout = model_of(recipe), Layout(mesh, recipe.rules)
    check_batch(recipe, layout)
    return Task(
        model=model,
        optimizer=recipe.optimizer.build(model.axes, model.shapes, recipe.steps),
        loss=recipe.loss,
        layout=layout,
        precision=recipe.precision,
        guard=recipe.guard,
        accumulate=recipe.accumulate,
    )


def check_batch(recipe: Recipe, layout: Layout) -> None:
    rows, ways = recipe.data.batch // recipe.accumulate, layout.batch_ways
    if rows % ways:
        raise ConfigError(
            f"{rows} rows at a time (data.batch={recipe.data.batch}, accumulate="
            f"{recipe.accumulate}) do not divide over the {ways} ways in which the mesh splits them"
        )
    if recipe.data.length % layout.length_ways:
        raise ConfigError(
            f"data.length={recipe.data.length} does not divide over the {layout.length_ways} ways"
            " in which the mesh splits a sequence"
        )


def batch_of(recipe: Recipe, layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape, dtype and sharding of each array of a batch, without any data."""
    where, shape = sharding_of(layout), (recipe.data.batch, recipe.data.length)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=where(name, shape))
        for name, dtype in FIELDS.items()
    }


def real_mesh(recipe: Recipe) -> tuple[Mesh, str]:
    """The recipe's mesh on the devices at hand, and why it is the one."""
    from jscale.mesh.devices import devices

    choice = mesh_of(recipe, len(devices()))
    return make_mesh(choice.shape), choice.reason
