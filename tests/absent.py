"""Programs for machines that are not here, as the kernels' tests compile them."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ahead.machines import need

from jscale.mesh.compat import uncached
from jscale.mesh.target import target

_MOSAIC: dict[str, str] = {}


def mosaic_compiles_for(machine: str, request: pytest.FixtureRequest) -> bool:
    """Whether Mosaic-GPU can compile for a machine in this process.

    It goes on compiling for the architecture of its first program, whatever the target. For another
    the test is run by a process of its own, and has passed where this gives False.
    """
    if _MOSAIC.setdefault("machine", machine) == machine:
        return True
    words = ("-m", "pytest", "-q", "-m", "slow or not slow", request.node.nodeid)
    done = subprocess.run(
        [sys.executable, *words], cwd=request.config.rootpath, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return False


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
