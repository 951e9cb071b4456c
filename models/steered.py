"""Weights that no gradient moves: they are steered after each step by what was counted in it."""

# L layers of a stack, E experts.

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array, Float

Tree = dict[str, Any]


class Steered(nnx.Variable):
    """Such a weight, always in float32. Its metadata `rate` is how far it moves in a step."""


class Placed(nnx.Module):
    """A layer that is told where its weights are: their path in those of the whole network.

    It is told as well whether to keep to the bounds that it may have on what devices receive: only
    where somebody sees to what finds no room.
    """

    path: str = ""
    bounded: bool = False

    @property
    def warning(self) -> str | None:
        """What must be told before it is used."""
        return None

    @property
    def counted(self) -> bool:
        """Whether something comes of what it counts."""
        return False

    def way(self, tokens: int) -> Any:
        """How the tokens of a batch, so many in all, get to its parts, to be told; None: no way."""
        return None

    @property
    def limited(self) -> bool:
        """Whether it has bounds."""
        return False


def steered(rate: float, **shape: int) -> Steered:
    """One with named dimensions, 0 at first."""
    zeros = jnp.zeros(tuple(shape.values()), jnp.float32)
    return Steered(zeros, out_sharding=tuple(shape), eager_sharding=False, rate=rate)


def moved(
    correction: Float[Array, "*L E"], chosen: Float[Array, "*L E"], rate: float
) -> Float[Array, "*L E"]:
    """Corrections of experts after a step in which they were chosen so often.

    Those chosen less than the mean are raised by `rate`, the others lowered. Their own mean stays
    0, which changes no choice. Source: Wang et al. 2024, arXiv 2408.15664.
    """
    mean = chosen.mean(-1, keepdims=True)
    new = correction + rate * jnp.sign(mean - chosen)
    return new - new.mean(-1, keepdims=True)


def named(path: tuple[Any, ...]) -> str:
    """The name of a path, as layers and weights have it."""
    return "/".join(map(str, path))


def without(tree: Any, names: frozenset[str]) -> Tree:
    """A nested dictionary without these weights; one that has none of them is as it was."""
    return _where(tree, lambda name: name not in names) if names else tree


def only(tree: Any, names: frozenset[str]) -> Tree:
    """These weights of a nested dictionary alone."""
    return _where(tree, lambda name: name in names) if names else {}


def joined(some: Tree, others: Tree) -> Tree:
    """Two nested dictionaries as one."""
    if not others:
        return some
    flat = {**traverse_util.flatten_dict(some), **traverse_util.flatten_dict(others)}
    return traverse_util.unflatten_dict(flat)


def map_named(of: Callable[[tuple[Any, ...], Any], Any], tree: Tree) -> Tree:
    """A nested dictionary with `of(path, weight)` in the place of each weight."""
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict({path: of(path, w) for path, w in flat.items()})


def _where(tree: Tree, keep: Any) -> Tree:
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict({p: w for p, w in flat.items() if keep(named(p))})
