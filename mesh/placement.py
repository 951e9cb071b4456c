"""Where every parameter goes, as a table to read: `jscale explain`."""

import math
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from jscale.mesh.layout import Decision, Layout, path_name


class Placement(NamedTuple):
    """One parameter on the mesh. Bytes are those of the parameter itself, on one device."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    decisions: tuple[Decision, ...]
    bytes_per_device: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * jax.numpy.dtype(self.dtype).itemsize


def placements(layout: Layout, shapes: PyTree, axes: PyTree) -> list[Placement]:
    """Every parameter's dimensions, the mesh axes that split them, who decided, and its bytes.

    Raises:
        ConfigError: as `Layout.decide`.
    """

    def place(path: tuple, shape: jax.ShapeDtypeStruct, axes: jax.sharding.PartitionSpec):
        name = path_name(path)
        decisions = tuple(layout.decide(name, axes, shape.shape))
        ways = math.prod(layout.mesh.shape[a] for d in decisions for a in d.mesh_axes)
        whole = math.prod(shape.shape) * shape.dtype.itemsize
        return Placement(name, shape.shape, str(shape.dtype), decisions, whole // ways)

    tree = jax.tree_util.tree_map_with_path(place, shapes, axes)
    return jax.tree.leaves(tree, is_leaf=lambda p: isinstance(p, Placement))
