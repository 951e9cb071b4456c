"""Where the optimizer's state lives: logical axes for every leaf of it.

A leaf belongs to a parameter when its path ends in the parameter's path (optax keeps such trees
under the same dictionary keys). A leaf of the same shape takes the parameter's axes; a smaller one
(Adafactor's rows and columns) the axes of the dimensions it kept, where the sizes tell; all others
are replicated, and counted.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import PartitionSpec
from jax.tree_util import DictKey, KeyPath
from jaxtyping import PyTree


class Replicated(NamedTuple):
    """A leaf of the state of which every device holds a whole copy."""

    path: str
    shape: tuple[int, ...]
    bytes: int


class Placement(NamedTuple):
    """Axes in the structure of the state, and the arrays that could not be given any."""

    axes: PyTree
    replicated: tuple[Replicated, ...]


def state_axes(tx: optax.GradientTransformation, shapes: PyTree, axes: PyTree) -> PyTree:
    """The axes of every leaf of `tx.init(shapes)`, in its exact structure; None where replicated.

    `axes` may equally be the mesh axes of the parameters; those of the state follow either.
    """
    return place(tx, shapes, axes).axes


def place(tx: optax.GradientTransformation, shapes: PyTree, axes: PyTree) -> Placement:
    """The axes of the state, with a list of the arrays that stay replicated.

    `shapes` and `axes` are nested dictionaries of the same keys. Scalars and parameters without
    named axes are replicated by right and are not listed. Touches no device.
    """
    owners = _owners(shapes, axes)
    state = jax.eval_shape(tx.init, shapes)
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    specs = [_leaf_axes(path, leaf, owners) for path, leaf in leaves]
    lost = tuple(
        Replicated(_name(path), leaf.shape, leaf.size * leaf.dtype.itemsize)
        for (path, leaf), spec in zip(leaves, specs, strict=True)
        if spec is None and leaf.size > 1
    )
    found = [
        _unnamed(leaf.ndim) if spec is None else spec
        for (_, leaf), spec in zip(leaves, specs, strict=True)
    ]
    return Placement(jax.tree.unflatten(structure, found), lost)


def _unnamed(dimensions: int) -> PartitionSpec:
    return PartitionSpec(*(None,) * dimensions)


def _name(path: KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


Owners = dict[tuple[Any, ...], tuple[tuple[int, ...], PartitionSpec]]


def _owners(shapes: PyTree, axes: PyTree) -> Owners:
    """The shape and the axes of every parameter, by the keys of its path."""
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    specs = structure.flatten_up_to(axes)
    return {
        tuple(key.key for key in path): (shape.shape, spec)
        for (path, shape), spec in zip(paths, specs, strict=True)
    }


def _leaf_axes(path: KeyPath, leaf: Any, owners: Owners) -> PartitionSpec | None:
    """The axes of one leaf, or None when nothing is known."""
    keys = tuple(key.key if isinstance(key, DictKey) else None for key in path)
    for start in range(len(keys)):  # the longest ending first
        owner = owners.get(keys[start:])
        if owner is not None:
            return kept_axes(leaf.shape, *owner)
    return None


def kept_axes(
    shape: tuple[int, ...], whole: tuple[int, ...], axes: PartitionSpec
) -> PartitionSpec | None:
    """The axes of an array that kept some dimensions of a weight, or None when sizes do not tell.

    >>> from jax.sharding import PartitionSpec as P
    >>> kept_axes((4, 64), (4, 64, 256), P("layers", "embed", "mlp"))
    P('layers', 'embed')
    >>> kept_axes((4, 64), (4, 64, 64), P("layers", "embed", "mlp"))
    P('layers', None)
    """
    if shape == whole:
        return axes
    if math.prod(shape) <= 1:
        return _unnamed(len(shape))
    names = tuple(axes) + (None,) * (len(whole) - len(axes))
    core = tuple(size for size in shape if size != 1)
    fits = [
        [names[place] for place in places]
        for places in itertools.combinations(range(len(whole)), len(core))
        if tuple(whole[place] for place in places) == core
    ]
    agreed = iter([each[0] if len(set(each)) == 1 else None for each in zip(*fits, strict=True)])
    spec = PartitionSpec(*(None if size == 1 else next(agreed, None) for size in shape))
    return spec if any(name is not None for name in spec) else None
