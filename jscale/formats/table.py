"""Tables that say which weights of a release are which of ours, read both ways.

Nothing is left over: a weight of the release that no row names, one that a row names and the
release lacks, and one of ours that no row fills are errors.
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import EinopsError, rearrange
from jaxtyping import PyTree

from jscale.checkpoint.names import named_leaves, rebuild
from jscale.errors import CheckpointError, did_you_mean
from jscale.formats.cut import Cut, joined
from jscale.formats.window import shape_of

Tensors = Mapping[str, np.ndarray]


class Lazy(NamedTuple):
    """An array that is fetched when it is wanted, and its size in bytes."""

    nbytes: int
    fetch: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """One of our weights, and the weights of a release that it is stacked from.

    `theirs` may hold names in braces, such as "layers.{layer}.fc1.weight"; `over` gives the numbers
    that each stands for, and our array has a leading axis for each, in that order. `pattern` leads
    from one of their arrays to ours, as einops writes it: "(n h) d -> d n h"; `sizes` are those of
    its letters that shapes alone do not tell. Where theirs holds others too, ours is a `cut` of it.
    """

    ours: str
    theirs: str
    pattern: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    over: Mapping[str, Sequence[int]] = field(default_factory=dict)
    cut: Cut | None = None

    @property
    def names(self) -> list[str]:
        """Their names, in the order in which they are stacked."""
        each = itertools.product(*self.over.values())
        return [self.theirs.format(**dict(zip(self.over, at, strict=True))) for at in each]

    def called(self, old: str, new: str) -> "Pair":
        """The row whose names have `old` where they have `new`."""
        return replace(self, theirs=self.theirs.replace(new, old, 1))

    def check(self, shape: Callable[[str], tuple[int, ...]], wanted: jax.ShapeDtypeStruct) -> None:
        """See that arrays of these shapes, by name, make what is wanted.

        Raises:
            CheckpointError: they do not.
        """
        counts = tuple(len(numbers) for numbers in self.over.values())
        for name in self.names:
            theirs = tuple(shape(name))
            theirs = theirs if self.cut is None else self.cut.shape(name, theirs)
            try:
                ours = (*counts, *shape_of(self.pattern, theirs, self.sizes))
            except EinopsError as error:
                reason = str(error).strip().splitlines()[-1]
                raise CheckpointError(
                    f"{name} {theirs} does not fit {self.pattern!r}: {reason}"
                ) from error
            if ours != tuple(wanted.shape):
                raise CheckpointError(
                    f"{name} {theirs} makes {self.ours} {ours}, and the model wants"
                    f" {tuple(wanted.shape)}: are its sizes those of the release?"
                )

    def check_counts(self, shape: tuple[int, ...]) -> None:
        """See that an array of ours of this shape has as many of each as theirs are to be.

        Raises:
            CheckpointError: it has others, of layers or of experts.
        """
        for (what, numbers), found in zip(self.over.items(), shape, strict=False):
            if len(numbers) != found:
                raise CheckpointError(
                    f"{self.ours} {shape} has {found} of {what}, and the release"
                    f" {len(numbers)} of {self.theirs}"
                )

    def to_ours(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Our array from theirs."""
        mine = lambda a: a if self.cut is None else self.cut.apply(a)
        turned = [self._turn(mine(np.asarray(a)), self.pattern) for a in arrays]
        counts = [len(numbers) for numbers in self.over.values()]
        return np.stack(turned).reshape(*counts, *turned[0].shape)

    def to_theirs(self, array: Any) -> Iterator[tuple[str, "Lazy"]]:
        """Their names and arrays from ours, each fetched when it is wanted."""
        back = None if self.pattern is None else " -> ".join(self.pattern.split(" -> ")[::-1])
        counts = [range(len(numbers)) for numbers in self.over.values()]
        size = array.nbytes // math.prod(map(len, counts))
        for name, at in zip(self.names, itertools.product(*counts), strict=True):
            yield name, Lazy(size, partial(self._one, array, at, back))

    def _one(self, array: Any, at: tuple[int, ...], back: str | None) -> np.ndarray:
        return self._turn(np.asarray(array[at] if at else array), back)

    def _turn(self, array: np.ndarray, pattern: str | None) -> np.ndarray:
        return array if pattern is None else rearrange(array, pattern, **self.sizes)


@dataclass(frozen=True)
class Table:
    """All rows between a model and a release, and what of the release is known to be no weight.

    `ignored` are regular expressions of whole names: buffers that our code computes itself, and
    weights of what the network does not have.
    `again` are rows of what a release may hold once more: it must be the same, and is not written.
    `older` tells of parts of names those that older releases have in their place.
    `root` begins all names; a release whose names all lack it is read too.
    """

    pairs: tuple[Pair, ...]
    ignored: tuple[str, ...] = ()
    again: tuple[Pair, ...] = ()
    older: Mapping[str, str] = field(default_factory=dict)
    root: str = ""

    def read(self, tensors: Tensors, shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[np.ndarray]:
        """Our weights from a release's, in the structure and dtypes of `shapes`.

        Raises:
            CheckpointError: a weight is missing, left over, or of another shape.
        """
        wanted, values = named_leaves(shapes), dict[str, np.ndarray]()
        for pair in self.rows(tensors, wanted):
            pair.check(lambda name: tensors[name].shape, wanted[pair.ours])
            array = pair.to_ours([tensors[name] for name in pair.names])
            array = array.astype(wanted[pair.ours].dtype)
            if not np.array_equal(values.setdefault(pair.ours, array), array):
                raise CheckpointError(differs(pair))
        return rebuild(shapes, values)

    def rows(self, names: Collection[str], wanted: Mapping[str, Any]) -> list[Pair]:
        """The rows by which a release of these names fills all the weights that are wanted.

        Raises:
            CheckpointError: a weight of either is missing or left over.
        """
        pairs = [*self.pairs, *(pair for pair in self.again if pair.theirs in names)]
        for new, old in self.older.items():
            if any(old in name for name in names):
                pairs = [pair.called(old, new) for pair in pairs]
        if self.root and not any(name.startswith(self.root) for name in names):
            bare = lambda pair: replace(pair, theirs=pair.theirs.removeprefix(self.root))
            pairs = [bare(pair) for pair in pairs]
        self._check_names(names, pairs)
        for pair in pairs:
            if pair.ours not in wanted:
                close = did_you_mean(pair.ours, wanted)
                raise CheckpointError(
                    f"the table fills {pair.ours!r}, which the model lacks; {close}"
                )
        if unfilled := sorted(set(wanted) - {pair.ours for pair in pairs}):
            raise CheckpointError(f"no weight of the release fills {some(unfilled)}")
        return pairs

    def passed(self, names: Iterable[str]) -> list[str]:
        """Those of a release's names that are `ignored`."""
        patterns = [re.compile(pattern) for pattern in self.ignored]
        return sorted(name for name in names if any(p.fullmatch(name) for p in patterns))

    def write(self, params: PyTree[Any]) -> dict[str, np.ndarray]:
        """A release's weights from ours, all at once; raises as `lazily` does."""
        return {name: lazy.fetch() for name, lazy in self.lazily(params).items()}

    def lazily(self, params: PyTree[Any]) -> dict[str, Lazy]:
        """A release's weights from ours, each to be fetched when it is wanted.

        Raises:
            CheckpointError: one of our weights has no place in the release, or two have one, or
                there are other numbers of layers or experts.
        """
        ours, out = named_leaves(params), dict[str, Lazy]()
        parts: dict[str, list[tuple[Cut, Lazy]]] = {}
        for pair in self.pairs:
            if pair.ours not in ours:
                raise CheckpointError(f"the table wants {pair.ours!r}, which these weights lack")
            pair.check_counts(tuple(ours[pair.ours].shape))
            for name, lazy in pair.to_theirs(ours[pair.ours]):
                if pair.cut is not None:
                    parts.setdefault(name, []).append((pair.cut, lazy))
                    lazy = _joined(name, parts[name])
                elif name in out:
                    raise CheckpointError(f"two of our weights would be {name!r} of the release")
                out[name] = lazy
        if homeless := sorted(set(ours) - {pair.ours for pair in self.pairs}):
            raise CheckpointError(f"the release has no place for {some(homeless)}")
        return out

    def _check_names(self, tensors: Collection[str], pairs: Sequence[Pair]) -> None:
        known = {name for pair in pairs for name in pair.names}
        if missing := [name for name in sorted(known) if name not in tensors]:
            close = did_you_mean(missing[0], tensors)
            raise CheckpointError(f"the release lacks {some(missing)}; {close}")
        left = {*tensors} - known
        if unused := left - {*self.passed(left)}:
            raise CheckpointError(f"the release holds {some(sorted(unused))}, which nothing uses")


def _joined(name: str, parts: Sequence[tuple[Cut, Lazy]]) -> Lazy:
    """An array that holds several of ours."""
    each = [(cut, lazy.fetch) for cut, lazy in parts]
    return Lazy(sum(lazy.nbytes for _, lazy in parts), partial(joined, name, each))


def differs(pair: Pair) -> str:
    """What is wrong with a row that should repeat another, and does not."""
    return (
        f"{pair.names[0]} is to be the same as another weight that fills {pair.ours}, and differs:"
        " the release does not share them"
    )


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
