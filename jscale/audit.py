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

from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError, NumericError, did_you_mean
from jscale.experts.counts import Layer
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

    found = named_leaves(jax.tree.map(rows, grads, axes))
    return {PREFIX + name: array for name, array in found.items()}


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

    A layer of experts whose tokens were counted must learn: its router, and every expert that was
    chosen. Of others it is told only: a model may have parts that an objective has no use for.

    Raises:
        NumericError: part of such a layer has none, and is not `allowed` by a pattern of its name.
    """
    chosen = {layer.name: layer.chosen for layer in layers}
    open_ = [one for one in found if not any(fnmatchcase(one.name, p) for p in allowed)]
    unused = [one for one in open_ if _unchosen(one, chosen)]
    rest = [one for one in open_ if one not in unused]
    wrong = [one for one in rest if any(_within(one, name) for name in chosen)]
    if wrong:
        raise NumericError(
            f"after the first step {len(wrong)} weight(s) of experts and routers have no gradient:"
            f" {_list(wrong)}. Something cuts them off from the loss; if that is meant, allow it by"
            f" guard.idle='(\"{wrong[0].name}\",)', or a pattern such as */router/*"
        )
    count = len({(one.name.rpartition("/expert/")[0], one.part) for one in unused})
    told = [f"{count} expert(s) were chosen by no token of the first batch"] if unused else []
    told += [f"no gradient in the first step: {_list(rest)}"] if rest else []
    permitted = len(found) - len(open_)
    return told + ([f"{permitted} weight(s) without a gradient, as allowed"] if permitted else [])


def _list(found: Sequence[Idle]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(map(str, found[:SHOWN])) + more


def _within(one: Idle, layer: str) -> bool:
    """Whether it is a weight of this layer of experts, or of the stack that the layer is in."""
    return any(one.name.startswith(f"{path}/") for path in (layer, layer.rpartition("/")[0]))


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
