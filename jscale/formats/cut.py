"""Weights that a release keeps in one array: which numbers of one of its axes are one of ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jscale.errors import CheckpointError
from jscale.formats.window import Box


@dataclass(frozen=True)
class Cut:
    """Of an axis that is `of` long, `count` numbers from `first` on, each `step` after another."""

    axis: int
    first: int
    count: int
    of: int
    step: int = 1

    def shape(self, name: str, theirs: Sequence[int]) -> tuple[int, ...]:
        """The shape of the part of an array of this name and shape.

        Raises:
            CheckpointError: the axis is of another length.
        """
        if len(theirs) <= self.axis or theirs[self.axis] != self.of:
            raise CheckpointError(
                f"{name} {tuple(theirs)} holds several weights, and axis {self.axis} must be"
                f" {self.of} long: are its sizes those of the release?"
            )
        return (*theirs[: self.axis], self.count, *theirs[self.axis + 1 :])

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The part of an array."""
        return array[self._box(slice(0, self.count))]

    def put(self, whole: np.ndarray, part: np.ndarray) -> None:
        """Write the part into an array."""
        whole[self._box(slice(0, self.count))] = part

    def read(self, part: Callable[[Box], np.ndarray], box: Box) -> np.ndarray:
        """A box of the part, by a function that reads boxes of the whole array.

        What lies between numbers of the part is read with them, for files are read in one go.
        """
        *before, wanted = self._box(box[self.axis])
        near = slice(wanted.start, wanted.stop)
        array = part((*box[: self.axis], near, *box[self.axis + 1 :]))
        return array[(*before, slice(None, None, self.step))]

    def _box(self, part: slice) -> Box:
        start = self.first + part.start * self.step
        stop = self.first + (part.stop - 1) * self.step + 1
        return (*[slice(None)] * self.axis, slice(start, stop, self.step))


def joined(name: str, parts: Sequence[tuple[Cut, Callable[[], np.ndarray]]]) -> np.ndarray:
    """The array that these are the parts of, each fetched when it is wanted.

    Raises:
        CheckpointError: they are not all of it.
    """
    whole: np.ndarray | None = None
    left = set(range(parts[0][0].of))
    for cut, fetch in parts:
        array = fetch()
        if whole is None:
            shape = (*array.shape[: cut.axis], cut.of, *array.shape[cut.axis + 1 :])
            whole = np.empty(shape, array.dtype)
        cut.put(whole, array)
        left -= set(range(cut.first, cut.first + cut.count * cut.step, cut.step))
    if left or whole is None:
        raise CheckpointError(f"no weight of ours fills {name} at {min(left)} of its axis")
    return whole
