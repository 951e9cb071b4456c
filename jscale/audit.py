"""After the first step: whether every weight that is to learn has had a gradient at all.

A router, an expert or an adapter that is cut off from the loss trains nothing and says nothing.
"""

# L layers of a stack, E experts, N rows of all weights.

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from jscale.errors import ConfigError, NumericError, did_you_mean
from jscale.experts.counts import Layer
from jscale.mesh.layout import path_name
from jscale.optim.matrices import STACKS

SHOWN = 8  # weights that a sentence names


def squares(grads: PyTree[Array]) -> PyTree[Array]:
    """Of each gradient, squared, in float32."""
    return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), grads)


def by_row(grads: PyTree[Array], axes: PyTree) -> Float[Array, " N"]:
    """Σ of squares of each weight's gradient, for every layer and expert that is stacked in it.

    One after the other in the order of the tree; their sum is the square of the global norm.
    """

    def rows(square: Array, spec: PartitionSpec) -> Array:
        return square.sum(range(stacked(spec), square.ndim)).reshape(-1)

    return jnp.concatenate(jax.tree.leaves(jax.tree.map(rows, squares(grads), axes)))


def stacked(axes: PartitionSpec) -> int:
    """How many of a weight's first axes stack weights that are each its own."""
    names = tuple(axes)
    return next((at for at, name in enumerate(names) if name not in STACKS), len(names))


class Idle(NamedTuple):
    """A weight, or one layer's or expert's part of it, that had no gradient."""

    name: str
    part: tuple[int, ...]
    whole: bool  # whether the weight had none in any part

    def __str__(self) -> str:
        return self.name if self.whole else f"{self.name}{list(self.part)}"


def idle(rows: np.ndarray, shapes: PyTree, axes: PyTree) -> Iterator[Idle]:
    """Whatever had no gradient: a weight as a whole, or those of its parts that had none."""
    first = 0
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    for (path, shape), spec in zip(leaves, jax.tree.leaves(axes, is_leaf=_is_spec), strict=True):
        form = shape.shape[: stacked(spec)]
        own = rows[first : first + math.prod(form)].reshape(form)
        first += own.size
        name = path_name(path)
        if not own.any():
            yield Idle(name, (), True)
        else:
            yield from (Idle(name, tuple(map(int, at)), False) for at in np.argwhere(own == 0))


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def judge(found: Sequence[Idle], layers: Sequence[Layer], allowed: Sequence[str]) -> list[str]:
    """What should be told of weights without a gradient, as sentences.

    An expert that no token of the first batch chose has none by right: it is counted, not refused.

    Raises:
        NumericError: others have none, and are not `allowed` by a pattern of their name.
    """
    chosen = {layer.name: layer.chosen for layer in layers}
    named = lambda one: any(fnmatchcase(one.name, pattern) for pattern in allowed)
    wrong = [one for one in found if not named(one) and not _unchosen(one, chosen)]
    if wrong:
        shown = ", ".join(map(str, wrong[:SHOWN]))
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise NumericError(
            f"after the first step {len(wrong)} weight(s) that should learn have no gradient:"
            f" {shown}{more}. Something cuts them off from the loss; if that is meant, allow it by"
            f" guard.idle='(\"{wrong[0].name}\",)', or a pattern such as */router/*"
        )
    unused = {(one.name.rpartition("/expert/")[0], one.part) for one in found if not named(one)}
    permitted = sum(map(named, found))
    told = [f"{len(unused)} expert(s) were chosen by no token of the first batch"] if unused else []
    return told + ([f"{permitted} weight(s) without a gradient, as allowed"] if permitted else [])


def _unchosen(one: Idle, chosen: Mapping[str, np.ndarray]) -> bool:
    """Whether it is the part of an expert that nobody chose."""
    layer, _, rest = one.name.partition("/expert/")
    if not rest:
        return False
    if one.whole:
        return not any(c.any() for name, c in chosen.items() if name.startswith(layer))
    *above, expert = one.part
    counts = chosen.get("/".join([layer, *map(str, above)]))
    return counts is not None and bool(counts[expert] == 0)


def check_patterns(patterns: Sequence[str], names: Sequence[str], what: str) -> None:
    """See that every pattern is of some weight.

    Raises:
        ConfigError: one is of none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            raise ConfigError(f"no weight matches {pattern!r} of {what}; {hint}")
