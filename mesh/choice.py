"""A sensible mesh where the user names none: every device used, weights split, nothing illegal.

This is a rule of thumb, not a search: split the weights over all devices (fsdp) where their sizes
and the batch allow it, else over as many as they allow with replicas (data) for the rest.
"""

from collections.abc import Iterator

from jaxtyping import PyTree

from jscale.errors import ConfigError
from jscale.mesh.layout import Layout
from jscale.mesh.rules import Rules
from jscale.mesh.shape import MeshShape, abstract_mesh


def candidates(devices: int, rows: int) -> Iterator[MeshShape]:
    """Meshes over which `rows` rows divide, the best first: many devices, then fsdp over data."""
    for count in range(devices, 0, -1):
        if rows % count == 0:
            divisors = [d for d in range(count, 0, -1) if count % d == 0]
            yield from (MeshShape(fsdp=d, data=count // d) for d in divisors)


def illegal(shape: MeshShape, rules: Rules, shapes: PyTree, axes: PyTree) -> str | None:
    """Why the parameters do not fit the mesh; None where they do."""
    try:
        Layout(abstract_mesh(shape), rules).weight_shardings(shapes, axes)
    except ConfigError as error:
        return str(error)
    return None


def choose(
    devices: int, rules: Rules, shapes: PyTree, axes: PyTree, rows: int
) -> tuple[MeshShape, str]:
    """The first legal mesh for so many devices, and a sentence that says why it was chosen.

    Raises:
        ConfigError: not even one device will do.
    """
    problem = None
    for shape in candidates(devices, rows):
        wrong = illegal(shape, rules, shapes, axes)
        if wrong is None:
            reason = f"chosen for {devices} device(s){why_not_all(devices, shape, rows)}"
            return (
                shape,
                reason if problem is None else f"{reason}; not the first choice: {problem}",
            )
        problem = problem or f"{shape} does not fit, for {wrong}"
    raise ConfigError(f"no mesh fits, not even one device: {problem}")


def why_not_all(devices: int, shape: MeshShape, rows: int) -> str:
    idle = devices - shape.devices
    if not idle:
        return ""
    return f"; {idle} stay(s) idle, because {rows} rows and the weights must divide over the rest"
