"""Layers that are not all alike: which kind each is, and stacks of those that repeat.

A scan needs layers of one structure. Kinds that take turns are one block of a stack (`Turn`); what
does not fit a turn, such as dense layers before those with experts, is a stack of its own.
"""

# B batch, T length, D model size.

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.models.draws import stream
from jscale.models.layers import Stack


class Run(NamedTuple):
    """Layers from `first` on, of kinds that follow each other in this order so many times."""

    first: int
    kinds: tuple[Hashable, ...]
    times: int

    @property
    def end(self) -> int:
        """The first layer after it."""
        return self.first + len(self.kinds) * self.times


@lru_cache
def runs(kinds: tuple[Hashable, ...]) -> tuple[Run, ...]:
    """The layers as runs, of all ways the one with the fewest blocks to compile.

    >>> [(run.kinds, run.times) for run in runs(("dense", "sparse", "sparse", "sparse"))]
    [(('dense',), 1), (('sparse',), 3)]
    >>> [("".join(run.kinds), run.times) for run in runs(tuple("lllglllglll"))]
    [('lllg', 2), ('l', 3)]
    """
    best: dict[int, tuple[int, int, tuple[Run, ...]]] = {len(kinds): (0, 0, ())}
    for first in reversed(range(len(kinds))):
        ways = []
        for length in range(1, len(kinds) - first + 1):
            run = Run(first, kinds[first : first + length], _times(kinds, first, length))
            blocks, parts, rest = best[run.end]
            ways.append((blocks + length, parts + 1, (run, *rest)))
        best[first] = min(ways, key=lambda way: (*way[:2], -way[2][0].end))
    return best[0][2]


def _times(kinds: tuple[Hashable, ...], first: int, length: int) -> int:
    """How often the next kinds, so many, follow each other."""
    times, turn = 1, kinds[first : first + length]
    while kinds[(at := first + times * length) : at + length] == turn:
        times += 1
    return times


class Place(NamedTuple):
    """Where the weights of some layers are: a path, the layers stacked there, and their kind."""

    path: str
    layers: range
    kind: Any


@dataclass(frozen=True)
class Kinds:
    """The kind of each layer, and how a block of a kind is made."""

    of: tuple[Hashable, ...]
    make: Callable[[Any, nnx.Rngs], nnx.Module]

    def build(self, rngs: nnx.Rngs, remat: str) -> "Stack | Layers":
        """All layers; those of one run are a single stack."""
        stacks = [self._stack(run, rngs, remat) for run in runs(self.of)]
        return stacks[0] if len(stacks) == 1 else Layers(stacks)

    def _stack(self, run: Run, rngs: nnx.Rngs, remat: str) -> Stack:
        makes = tuple(partial(self.make, kind) for kind in run.kinds)
        return Stack(makes, len(run.kinds) * run.times, rngs, remat)

    def places(self, root: str = "blocks") -> Iterator[Place]:
        """Where each layer's weights are below `root`: what tables of names go through."""
        parts = runs(self.of)
        for number, run in enumerate(parts):
            path = f"{root}/block" if len(parts) == 1 else f"{root}/parts/{number}/block"
            for at, kind in enumerate(run.kinds):
                layers = range(run.first + at, run.end, len(run.kinds))
                yield Place(path if len(run.kinds) == 1 else f"{path}/layers/{at}", layers, kind)


class Layers(nnx.Module):
    """Stacks one after the other, called as one `Stack` is.

    Of a report the values of all layers that have it come back, in their order.
    """

    def __init__(self, parts: list[Stack]):
        self.parts = nnx.List(parts)

    def __call__(
        self, x: Float[Array, "B T D"], context: Any, state: Any = None
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Any]]:
        gathered: dict[str, list[Any]] = {}
        states, first = [], 0
        for number, part in enumerate(self.parts):
            here = context._replace(key=stream(context.key, str(number)))
            mine = slice(first, first + part.layers)
            first = mine.stop
            x, (reports, own) = part(x, here, jax.tree.map(lambda a, at=mine: a[at], state))
            states.append(own)
            for name, values in reports.items():
                gathered.setdefault(name, []).append(values)
        joined = lambda *each: jnp.concatenate(each)
        told = {name: jax.tree.map(joined, *values) for name, values in gathered.items()}
        return x, (told, jax.tree.map(joined, *states))
