"""A readable name for every array of a state, so that what is stored knows no Python class."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from jscale.errors import CheckpointError


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path: attribute names, dictionary keys and positions, with "/".

    Empty nodes (None, optax's EmptyState and MaskedNode) have no leaves and no name.
    Raises CheckpointError where two leaves would get the same name or one name leads into another.

    >>> named_leaves({"params": {"up": 1, "down": 2}, "optimizer": (None, [3])})
    {'optimizer/1/0': 3, 'params/down': 2, 'params/up': 1}
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(_key(key) for key in path) or "state"
        if name in leaves:
            raise CheckpointError(f"two arrays of the state have the same name, {name!r}")
        leaves[name] = leaf
    for name in leaves:
        _refuse_nesting(name, leaves)
    return leaves


def rebuild(like: PyTree, values: Mapping[str, Any]) -> PyTree:
    """A tree of the structure of `like` with the values of the same names."""
    return jax.tree.unflatten(
        jax.tree.structure(like), [values[name] for name in named_leaves(like)]
    )


def _key(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise AssertionError(f"unknown kind of key {key!r}")


def _refuse_nesting(name: str, leaves: Mapping[str, Any]) -> None:
    parts = name.split("/")
    for length in range(1, len(parts)):
        parent = "/".join(parts[:length])
        if parent in leaves:
            raise CheckpointError(f"the arrays {parent!r} and {name!r} cannot both be stored")
