"""Which box of their array holds a part of ours, where a pattern leads from one to the other."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange

Box = tuple[slice, ...]


class Window(NamedTuple):
    """A box of their array, the sizes of the pattern's letters in it, and what of the turned box is
    wanted."""

    box: Box
    sizes: dict[str, int]
    rest: Box

    def turned(self, array: np.ndarray, pattern: str | None) -> np.ndarray:
        """The part of ours from the box of theirs."""
        return array if pattern is None else rearrange(array, pattern, **self.sizes)[self.rest]


def window(
    pattern: str | None, shape: Sequence[int], part: Sequence[slice], sizes: Mapping[str, int]
) -> Window:
    """The window for a part of our array of this shape; pattern and sizes are those of `Pair`.

    A slice of an axis of ours that is the first letter of one of theirs, as n is of "(n h)", is a
    slice of theirs. Of all others the whole is read, and cut afterwards.

    >>> window("(n h) d -> d n h", (6, 4, 2), (slice(0, 6), slice(1, 3), slice(0, 2)), {}).box
    (slice(2, 6, None), slice(0, 6, None))
    """
    bounds = [slice(*s.indices(size)[:2]) for s, size in zip(part, shape, strict=True)]
    if pattern is None:
        return Window(tuple(bounds), {}, ())
    left, right = (_groups(side) for side in pattern.split(" -> "))
    full = _sizes(right, shape, sizes)
    alone = {group[0]: b for group, b in zip(right, bounds, strict=True) if len(group) == 1}
    box, held = list[slice](), dict(full)
    for group in left:
        first, step = group[0], math.prod(full[name] for name in group[1:])
        wanted = alone.get(first, slice(0, full[first]))
        box.append(slice(wanted.start * step, wanted.stop * step))
        held[first] = wanted.stop - wanted.start
    del held["1"]
    cut = [
        slice(None) if len(group) == 1 and held[group[0]] != full[group[0]] else bound
        for group, bound in zip(right, bounds, strict=True)
    ]
    return Window(tuple(box), held, tuple(cut))


def _groups(side: str) -> list[list[str]]:
    """The letters of each axis: [["n", "h"], ["d"]] of "(n h) d"."""
    return [re.findall(r"\w+", axis) for axis in re.findall(r"\([^)]*\)|\w+", side)]


def _sizes(
    groups: Sequence[Sequence[str]], shape: Sequence[int], given: Mapping[str, int]
) -> dict[str, int]:
    """The size of every letter, where at most one of an axis is not given."""
    found = {"1": 1, **given}
    for group, size in zip(groups, shape, strict=True):
        unknown = [name for name in group if name not in found]
        if unknown:
            found[unknown[0]] = size // math.prod(found[n] for n in group if n in found)
    return found


def shape_of(
    pattern: str | None, theirs: Sequence[int], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    """The shape of ours from that of theirs; raises einops' error where it does not fit."""
    if pattern is None:
        return tuple(theirs)
    one = jax.ShapeDtypeStruct(tuple(theirs), np.float32)
    return jax.eval_shape(lambda a: rearrange(a, pattern, **sizes), one).shape
