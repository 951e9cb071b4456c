"""From a recipe to a task: the model, the mesh, the layout, the optimizer, all checked."""

from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from jscale.audit import check_patterns
from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError
from jscale.generate import writer
from jscale.losses import NextToken
from jscale.mesh import Layout, MeshShape, choose, make_mesh
from jscale.models.decoder import Answering
from jscale.models.model import Model
from jscale.optim.frozen import frozen_by
from jscale.recipe import Recipe
from jscale.train import Task, sharding_of

# Who reads what not every batch has, and where it comes from.
READERS = {
    "source": "loss=GivenSource() and a model that reads one, such as EncoderDecoder",
    "images": "loss=Contrastive() or MaskedImageText(…)",
}
SOURCES = {
    "source": "PairData, pairs of a source and a target",
    "images": "CaptionedImages, images with text",
}


class Choice(NamedTuple):
    """A mesh and why it is the one."""

    shape: MeshShape
    reason: str


def model_of(recipe: Recipe) -> Model:
    frozen = frozen_by(recipe.optimizer)
    precision = recipe.precision
    return Model(recipe.model, precision.compute, precision.store, frozen=frozen)


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
    names = list(named_leaves(model.shapes))
    check_patterns(model.frozen, names, "optimizer.weights, which are frozen")
    if not jax.tree.leaves(model.learned(model.shapes)):
        raise ConfigError("every weight is frozen: optimizer.weights leaves none to learn")
    check_patterns(recipe.guard.idle, names, "guard.idle")
    check_batch(recipe, layout)
    check_loss(recipe, model)
    if recipe.samples is not None:
        writer(model, model.shapes)  # raises for one that writes no text
    return Task(
        model=model,
        optimizer=recipe.optimizer.build(
            model.learned(model.axes), model.learned(model.shapes), recipe.steps
        ),
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
    for field in ("length", "source_length"):
        places = getattr(recipe.data, field, None)
        if places and places % layout.length_ways:
            raise ConfigError(
                f"data.{field}={places} does not divide over the {layout.length_ways} ways"
                " in which the mesh splits a sequence"
            )


def check_loss(recipe: Recipe, model: Model) -> None:
    """See that the loss can be had of these data and this network.

    Raises:
        ConfigError: a batch lacks what it reads, or the network is of another kind.
    """
    loss, data, kind = (type(x).__name__ for x in (recipe.loss, recipe.data, recipe.model))
    reads = getattr(recipe.loss, "reads", None)  # a loss of one's own need not say
    if reads is not None:
        for name, who in READERS.items():
            if name in recipe.data.shapes and name not in reads:
                raise ConfigError(f"loss={loss} does not read the {name} of data={data}: set {who}")
        if lacking := [name for name in reads if name not in recipe.data.shapes]:
            hint = next((SOURCES[name] for name in lacking if name in SOURCES), "text")
            raise ConfigError(
                f"loss={loss} reads {', '.join(lacking)} of a batch, which data={data} has not:"
                f" that needs {hint}"
            )
    if not isinstance(recipe.loss, NextToken):
        return
    network = model.bind(model.shapes)
    if isinstance(network, Answering):
        raise ConfigError(f"loss=NextToken has no source for model={kind}: set loss=GivenSource()")
    if not getattr(network, "causal", True):
        raise ConfigError(
            f"loss=NextToken is no objective for model={kind}, which sees the next token: set"
            " loss=MaskedTokens(mask_token)"
        )


def batch_of(recipe: Recipe, layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape, dtype and sharding of each array of a batch, without any data."""
    where = sharding_of(layout)
    return {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where(name, array.shape))
        for name, array in recipe.data.shapes.items()
    }


def real_mesh(recipe: Recipe) -> tuple[Mesh, str]:
    """The recipe's mesh on the devices at hand, and why it is the one."""
    from jscale.mesh.devices import devices

    choice = mesh_of(recipe, len(devices()))
    return make_mesh(choice.shape), choice.reason
