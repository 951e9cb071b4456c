"""Where a recipe's state goes on a mesh, as values to print or to draw. Nothing is run."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax

from jscale import train
from jscale.checkpoint.sizes import readable
from jscale.compiled import Compilation, Compiled
from jscale.errors import ConfigError
from jscale.mesh import MeshShape, Placement, abstract_mesh, placements
from jscale.mesh.layout import Decision
from jscale.models.decoder import Sharing
from jscale.optim.placement import Replicated, place
from jscale.prepare import Choice, batch_of, mesh_of, real_mesh, task_of
from jscale.recipe import Recipe


class Row(NamedTuple):
    """One parameter: its name, its placement, and the words for them."""

    name: str
    placement: Placement

    def cells(self, mesh: MeshShape) -> tuple[str, ...]:
        """Name, shape, axes and what splits them, who decided, bytes on one device."""
        decisions = self.placement.decisions

        def split(d: Decision) -> str:
            ways = [f"{a}={getattr(mesh, a)}" for a in d.mesh_axes if getattr(mesh, a) > 1]
            return f"{d.axis} over {'*'.join(ways)}" if ways else str(d.axis)

        reasons = dict.fromkeys(d.reason for d in decisions if d.reason != "rule")
        return (
            self.name,
            "x".join(map(str, self.placement.shape)),
            ", ".join(split(d) for d in decisions),
            "; ".join(reasons) or "rules",
            readable(self.placement.bytes_per_device),
        )


@dataclass(frozen=True)
class Explanation:
    """A mesh, why it is the one, every parameter on it, and the bytes of the state by part."""

    mesh: MeshShape
    reason: str
    rows: tuple[Row, ...]
    parameters: int
    active: int  # parameters that a token uses: of experts only those chosen
    bytes_per_device: dict[str, int]
    replicated: tuple[Replicated, ...]  # optimizer arrays of which every device holds a whole copy
    exchange: str | None = None  # how devices that share a sequence attend to each other's tokens
    dispatches: tuple[str, ...] = ()  # how tokens get to their experts, each way that there is

    def totals(self) -> list[str]:
        """Sentences: how large the model and its state are on one device."""
        parts = ", ".join(f"{name} {readable(b)}" for name, b in self.bytes_per_device.items())
        whole = readable(sum(self.bytes_per_device.values()))
        some = self.active != self.parameters
        used = f", of which a token uses {self.active:,}," if some else ""
        out = [f"{self.parameters:,} parameters{used} on {self.mesh.devices} device(s)"]
        out.append(f"state on each device: {whole} ({parts}); activations come on top")
        out += [self.exchange] if self.exchange else []
        out += self.dispatches
        for array in self.replicated:
            size = readable(array.bytes)
            out.append(f"whole on every device: optimizer/{array.path} {array.shape}, {size}")
        return out


def explain(recipe: Recipe, devices: int | None = None) -> Explanation:
    """Where everything of a recipe goes, on `devices` supposed devices or on those present.

    Raises:
        ConfigError: no such mesh, or the model does not fit it.
    """
    if devices is None and isinstance(recipe.mesh, MeshShape):
        devices = recipe.mesh.devices
    if devices is None:
        from jscale.mesh.devices import devices as present

        devices = len(present())
    if devices < 1:
        raise ConfigError(f"there must be at least 1 device, not {devices}")
    if isinstance(recipe.mesh, MeshShape) and recipe.mesh.devices != devices:
        raise ConfigError(
            f"the recipe's mesh ({recipe.mesh}) has {recipe.mesh.devices} devices, not {devices};"
            " set mesh=auto to have one chosen"
        )
    choice = mesh_of(recipe, devices)
    task = task_of(recipe, abstract_mesh(choice.shape))
    data, found = recipe.data, explain_task(task, choice)
    exchange, dispatches = exchange_of(task, data.length), dispatches_of(task, data)
    return replace(found, exchange=exchange, dispatches=dispatches)


def exchange_of(task: train.Task, length: int) -> str | None:
    """What attention exchanges where devices share a sequence of such a length, and why."""
    network = task.model.bind(task.model.shapes)
    if not isinstance(network, Sharing):
        return None
    with task.layout.active():
        chosen = network.exchange(length)
    return None if chosen is None else str(chosen)


def dispatches_of(task: train.Task, data: Any) -> tuple[str, ...]:
    """How layers send a batch of these data to their experts, and why; layers alike are one."""
    model, tokens = task.tight.model, data.batch // task.accumulate * data.length
    layers = model.placed
    with task.layout.active():
        ways = [layer.way(tokens) for layer in layers]
    return tuple(dict.fromkeys(str(way) for way in ways if way is not None))


def explain_task(task: train.Task, choice: Choice) -> Explanation:
    """Where everything of a task goes on its mesh, which is the choice's."""
    model, state = task.model, train.shapes(task)
    rows = placements(task.layout, model.shapes, model.axes)
    specs = jax.tree.map(lambda s: s.sharding.spec, state.params)
    lost = place(task.optimizer, *map(model.learned, (model.shapes, specs))).replicated
    return Explanation(
        mesh=choice.shape,
        reason=choice.reason,
        rows=tuple(Row(p.name, p) for p in rows),
        parameters=model.size,
        active=model.active,
        bytes_per_device={
            "parameters": bytes_of(state.params),
            "gradients": bytes_of(state.params),
            "optimizer": bytes_of(state.optimizer),
        },
        replicated=tuple(array for array in lost if array.bytes >= 1024),
    )


def as_data(found: Explanation) -> dict[str, Any]:
    """An explanation as JSON can hold it: the mesh's axes, every parameter, bytes on each device.

    A dimension of a parameter is its size, its logical axis, the mesh axes that split it, and why.
    """

    def parameter(placement: Placement) -> dict[str, Any]:
        dimensions = [
            {"size": size, "axis": d.axis, "over": list(d.mesh_axes), "reason": d.reason}
            for size, d in zip(placement.shape, placement.decisions, strict=True)
        ]
        dtype, each = placement.dtype, placement.bytes_per_device
        return {"dtype": dtype, "dimensions": dimensions, "bytes_per_device": each}

    return {
        "mesh": asdict(found.mesh),
        "reason": found.reason,
        "count": found.parameters,
        "active": found.active,
        "parameters": {row.name: parameter(row.placement) for row in found.rows},
        "bytes_per_device": found.bytes_per_device,
        "replicated": [f"optimizer/{array.path}" for array in found.replicated],
    }


def compile_step(recipe: Recipe) -> Compilation:
    """Compile the train step for the devices at hand, as training would; no data are read.

    Raises:
        ConfigError: the recipe does not fit the devices.
    """
    task = task_of(recipe, real_mesh(recipe)[0])
    batch = batch_of(recipe, task.layout)
    told: list[Compilation] = []
    Compiled(train.make_step(task), told.append).compile(train.shapes(task), batch)
    return told[0]


def bytes_of(tree: object) -> int:
    """The bytes on one device of a tree of shapes with shardings."""
    one = lambda s: jax.tree.reduce(
        lambda a, b: a * b, s.sharding.shard_shape(s.shape), s.dtype.itemsize
    )
    return sum(one(s) for s in jax.tree.leaves(tree))
