"""Programs for one chip of a machine that is not here, as the kernels' tests compile them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ahead.machines import need

from jscale.mesh.compat import uncached
from jscale.mesh.target import target


def compiled(machine: str, function: Callable[..., Any], *shapes: Any) -> Any:
    """The program of a function of pytrees of shapes, whose kernels see a chip of the machine.

    Without the machine's compiler the test is skipped; in CI that is a failure.
    """
    need(machine)
    mesh = jax.sharding.Mesh(np.array(target(machine).devices()[:1]), ("x",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def seen(*inputs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*inputs)

    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    lowered = jax.jit(seen).lower(*jax.tree.map(placed, shapes))
    with uncached():
        return lowered.compile()
