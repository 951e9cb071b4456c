"""After the first step: whether every weight that is to learn has had a gradient at all.

A router, an expert or an adapter that is cut off from the loss trains nothing and says nothing.
"""

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

PREFIX = "squares/"  # of what a step reports of gradients, before the name of the weight
SHOWN = 8  # weights that a sentence names


def squares(grads: PyTree[Array], axes: PyTree) -> dict[str, Float[Array, "..."]]:
    """Σ of squares of each weight's gradient, for every layer and expert that is stacked in it.

    By the weight's name; in all it is the square of the global norm. In one array a TPU would bring
    gradients into another layout first.
    """

    def rows(g: Array, spec: PartitionSpec) -> Array:
        return jnp.square(g.astype(jnp.float32)).sum(range(stacked(spec), g.ndim))

    found = jax.tree_util.tree_flatten_with_path(jax.tree.map(rows, grads, axes))[0]
    return {PREFIX + path_name(path): array for path, array in found}


def is_square(name: str) -> bool:
    """Whether this metric of a step is of a weight's gradient."""
    return name.startswith(PREFIX)


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


def idle(squares: Mapping[str, Any]) -> Iterator[Idle]:
    """Whatever had no gradient: a weight as a whole, or those of its parts that had none."""
    for full, array in squares.items():
        own, name = np.asarray(array), full.removeprefix(PREFIX)
        if not own.any():
            yield Idle(name, (), True)
        else:
            yield from (Idle(name, tuple(map(int, at)), False) for at in np.argwhere(own == 0))


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
