"""Programs for machines that are not here, as the kernels' tests compile them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ahead.machines import need

from jscale.mesh.compat import uncached
from jscale.mesh.target import target


def mesh_of(machine: str, **axes: int) -> jax.sharding.Mesh:
    """The first chips of a machine, as a mesh.

    Without the machine's compiler the test is skipped; in CI that is a failure.
    """
    need(machine)
    chips = np.array(target(machine).devices()[: math.prod(axes.values())])
    return jax.sharding.Mesh(chips.reshape(tuple(axes.values())), tuple(axes))


def compiled(machine: str, function: Callable[..., Any], *shapes: Any) -> Any:
    """The program of a function of pytrees of shapes, whose kernels see one chip of the machine."""
    mesh = mesh_of(machine, x=1)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return compiled_on(mesh, function, *jax.tree.map(placed, shapes))


def compiled_on(mesh: jax.sharding.Mesh, function: Callable[..., Any], *shapes: Any) -> Any:
    """The program of a function of pytrees of shapes that have shardings on this mesh."""

    def seen(*inputs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*inputs)

    lowered = jax.jit(seen).lower(*shapes)
    with uncached():
        return lowered.compile()
