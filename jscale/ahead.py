"""The real train step compiled for a machine that need not be here, and what it would take there.

The memory is the compiler's own account, of one device. What else a device must hold while a step
runs is not in it: batches made ready ahead, the copies of a save, what the runtime keeps back.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Any

import jax

from jscale import train
from jscale.compiled import Memory, memory_of, out_of_memory
from jscale.errors import ConfigError
from jscale.explain import bytes_of
from jscale.mesh import MeshShape, make_mesh
from jscale.mesh.compat import uncached
from jscale.mesh.machines import Torus, chip_of
from jscale.mesh.target import Target, target
from jscale.prepare import batch_of, mesh_of, task_of
from jscale.recipe import Recipe
from jscale.signals import aside

# How libtpu says what it would have needed; its G are GiB.
NEEDS = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Report:
    """What became of compiling a recipe's train step for a machine."""

    recipe: str
    target: Target
    mesh: MeshShape
    reason: str  # why it is this mesh
    state: dict[str, int]  # bytes on one device by part of the state, without padding
    seconds: float  # of tracing and compiling
    memory: Memory | None = None  # None where the compiler gave up, or keeps no account
    refusal: str | None = None  # why it gave up for want of memory, in its own words
    program: Any = field(default=None, repr=False)  # jax.stages.Compiled

    @property
    def needed(self) -> int | None:
        """The bytes needed on one device; where the compiler gave up, those that it names."""
        if self.memory is not None:
            return self.memory.total
        found = NEEDS.search(self.refusal or "")
        return int(float(found[1]) * UNITS[found[2]]) if found else None

    @property
    def fits(self) -> bool | None:
        """Whether it fits into the memory of a device; None where nobody says how much it has."""
        if self.refusal is not None:
            return False
        if self.memory is None or self.target.memory is None:
            return None
        return self.memory.total <= self.target.memory


def compile_for(recipe: Recipe, machine: Target | str | None = None) -> Report:
    """Compile the train step of a recipe for a machine by name, or for the devices at hand.

    Raises:
        ConfigError: no such machine, no compiler for it, or the recipe does not fit on its mesh.
    """
    if isinstance(machine, str):
        machine = target(machine)
    devices = None if machine is None else machine.devices()
    machine = machine or at_hand()
    choice = mesh_of(recipe, machine.count)
    check_size(recipe, machine)
    check_whole(choice.shape, machine)
    task = task_of(recipe, make_mesh(choice.shape, devices))
    state = train.shapes(task)
    parts = {"parameters": bytes_of(state.params), "optimizer": bytes_of(state.optimizer)}
    start = time.perf_counter()
    lowered = train.make_step(task).lower(state, batch_of(recipe, task.layout))
    program = refusal = None
    try:
        with uncached():
            program = aside(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        refusal = str(error)
    return Report(
        recipe=recipe.name,
        target=machine,
        mesh=choice.shape,
        reason=choice.reason,
        state=parts,
        seconds=time.perf_counter() - start,
        memory=None if program is None else memory_of(program),
        refusal=refusal,
        program=program,
    )


def check_size(recipe: Recipe, machine: Target) -> None:
    """See that a mesh named by the recipe is as large as the machine.

    Raises:
        ConfigError: it has more or fewer devices.
    """
    mesh = recipe.mesh
    if isinstance(mesh, MeshShape) and mesh.devices != machine.count:
        raise ConfigError(
            f"the mesh ({mesh}) has {mesh.devices} device(s), and {machine.name} has"
            f" {machine.count}; set mesh=auto to have one chosen"
        )


def check_whole(shape: MeshShape, machine: Target) -> None:
    """See that a mesh that was chosen leaves no TPU idle: their programs take a whole slice.

    Raises:
        ConfigError: it leaves some.
    """
    torus = machine.chip is not None and isinstance(machine.chip.build, Torus)
    if torus and shape.devices < machine.count:
        raise ConfigError(
            f"data.batch leaves work for {shape.devices} of the {machine.count} devices of"
            f" {machine.name} ({shape}), and a TPU's program takes them all; give it a batch that"
            f" divides over {machine.count}, or name a mesh that splits the model as well"
        )


def at_hand() -> Target:
    """The devices of this process as a machine, with the memory that they say they have."""
    from jscale.mesh.devices import devices

    present = devices()
    chip = chip_of(present[0].device_kind)
    count = len(present) if chip is None else len(present) // chip.devices
    stats = jax.local_devices()[0].memory_stats() or {}  # only one's own devices may be asked
    memory = stats.get("bytes_limit", chip.usable if chip else None)
    return Target("the devices at hand", chip, (count,), memory=memory)
