"""Which weights are matrices, read off their logical axes and never off their names.

Weights arrive stacked and with their sides split: `P("layers", "embed", "heads", "head")` is, for
every layer, one matrix from embed to heads x head. Two rules recover it:

- leading `layers` and `experts` axes stack independent weights;
- an axis of head sizes belongs to the axis of heads before it.

What remains are the sides: two make a matrix, one a scale or a bias.
"""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

STACKS = ("layers", "experts")


def sides(axes: PartitionSpec) -> tuple[tuple[int, ...], ...]:
    """The dimensions of each side of a weight, without the stacked ones.

    >>> from jax.sharding import PartitionSpec as P
    >>> sides(P("layers", "embed", "heads", "head"))
    ((1,), (2, 3))
    >>> sides(P("layers", "experts", "mlp", "embed"))
    ((2,), (3,))
    >>> sides(P("layers", "kv_heads", "head"))
    ((1, 2),)
    >>> sides(P("layers", "scale"))
    ((1,),)
    """
    names = tuple(axes)
    start = 0
    while start < len(names) and names[start] in STACKS:
        start += 1
    groups: list[tuple[int, ...]] = []
    for place in range(start, len(names)):
        if place > start and _continues(names[place - 1], names[place]):
            groups[-1] += (place,)
        else:
            groups.append((place,))
    return tuple(groups)


def _continues(before: object, name: object) -> bool:
    """Whether `name` counts inside each of `before`, as head sizes do inside heads."""
    if not (isinstance(before, str) and isinstance(name, str)):
        return False
    return before.endswith("heads") and name.endswith("head")


def decays(axes: PyTree) -> PyTree:
    """True for every weight with two sides or more: weight decay leaves scales and biases alone."""
    return jax.tree.map(lambda spec: len(sides(spec)) >= 2, axes)
