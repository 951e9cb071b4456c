"""Pairs in rows: sources in one array, their targets in another, and who belongs to whom.

Legend: N pairs, Q rows read together, S source places, T target places.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Int64, Integer, Shaped

from jscale.data.cache import TokenCache
from jscale.data.heldout import held_out
from jscale.data.packing import ramps
from jscale.data.stream import text_shapes
from jscale.errors import DataError

Rowing = Literal["packed", "padded"]


@dataclass(frozen=True, eq=False)
class PairRows:
    """The rows of one side of one cache of `InTurn`, read at random; workers plan them anew.

    A row holds as many pairs in their order as have room (or one, where `packing` is "padded"). A
    pair is held out by its source, so that one source with several targets is on one side.
    """

    cache: TokenCache
    side: str
    heldout: float
    packing: Rowing
    sizes: tuple[int, int]  # places of a row of sources, and of one of targets
    skip: bool  # whether pairs that do not fit are left out, and not an error
    start: int  # the token before a target
    begun: bool  # whether every document begins with it
    pad: int
    name: str

    @property
    def length(self) -> int:
        """Places in a row of targets."""
        return self.sizes[1]

    @cached_property
    def lengths(self) -> Int64[np.ndarray, "N 2"]:
        """The places of each pair's source and target, those of the other side too.

        A target has as many inputs as tokens to predict; with a beginning of its own that is one
        token less than its document.
        """
        both = np.diff(self.cache.offsets).reshape(-1, 2)
        return both - np.array([0, int(self.begun)])

    @cached_property
    def _mine(self) -> Int64[np.ndarray, " pairs"]:
        out = held_out(self.cache.hashes[::2], self.heldout, self.name, "source")
        return np.flatnonzero(out if self.side == "heldout" else ~out)

    @cached_property
    def _fits(self) -> Bool[np.ndarray, " pairs"]:
        return np.logical_and.reduce(self.lengths[self._mine] <= np.array(self.sizes), axis=1)

    @property
    def skipped(self) -> int:
        """How many pairs of this side do not fit into a row."""
        return int((~self._fits).sum())

    @cached_property
    def documents(self) -> Int64[np.ndarray, " pairs"]:
        """The pairs of this side that fit, by their number.

        Raises:
            DataError: some do not fit, and are not to be left out.
        """
        if not self.skip and not self._fits.all():
            first = int(self._mine[int(np.argmin(self._fits))])
            source, target = self.lengths[first].tolist()
            most = self.lengths.max(0).tolist()
            raise DataError(
                f"pair {first + 1} of {self.name} has {source} tokens and a target of {target}, and"
                f" rows have places for {self.sizes[0]} and {self.sizes[1]}: make"
                f" data.source_length {most[0]} and data.length {most[1]} for all of them, or"
                f' data.long="skip" to leave out those ({self.skipped}) that do not fit'
            )
        return self._mine[self._fits]

    @cached_property
    def rows(self) -> Int64[np.ndarray, " bounds"]:
        """Row r holds the pairs `documents[rows[r]]` up to `documents[rows[r + 1]]`."""
        lengths = self.lengths[self.documents]
        if self.packing == "padded":
            return np.arange(len(lengths) + 1)
        bounds, used = [], list(self.sizes)
        for number, (source, target) in enumerate(lengths.tolist()):
            used = [used[0] + source, used[1] + target]
            if used[0] > self.sizes[0] or used[1] > self.sizes[1]:
                bounds.append(number)
                used = [source, target]
        return np.array([*bounds, len(lengths)], np.int64)

    def __len__(self) -> int:
        return len(self.rows) - 1

    def count(self) -> int:
        """How many pairs are in them."""
        return len(self.documents)

    def tokens(self) -> int:
        """Targets of an epoch."""
        return int(self.lengths[self.documents, 1].sum())

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of so many rows."""
        return pair_shapes(rows, self.sizes)

    def read(self, rows: Int64[np.ndarray, " Q"]) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """These rows as arrays, in this order: see `pair_shapes`."""
        count = self.rows[rows + 1] - self.rows[rows]
        turn = ramps(count)
        pairs = self.documents[np.repeat(self.rows[rows], count) + turn]
        lengths, offsets = self.lengths[pairs], self.cache.offsets
        lay = Laid(np.repeat(np.arange(len(rows)), count), len(rows), turn + 1)
        source = lay.out(lengths[:, 0], self.sizes[0])
        target = lay.out(lengths[:, 1], self.sizes[1])
        text = self.cache.tokens
        predicted = target.taken(text, offsets[2 * pairs + 1] + int(self.begun), self.pad)
        first = target.used & (target.position == 0)
        inputs = np.where(first, self.start, np.roll(predicted, 1, axis=1))
        return {
            "source": source.taken(text, offsets[2 * pairs], self.pad),
            "source_segments": source.segment,
            "inputs": np.where(target.used, inputs, self.pad).astype(np.int32),
            "targets": predicted,
            "weights": target.used.astype(np.float32),
            "segments": target.segment,
            "positions": target.position,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the cached plan."""
        fields = (self.cache, self.side, self.heldout, self.packing, self.sizes, self.skip)
        return PairRows, (*fields, self.start, self.begun, self.pad, self.name)


def pair_shapes(rows: int, sizes: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of so many rows of pairs: what is read, and what is to be written of it.

    source, source_segments [Q, S] int32; inputs, targets, segments, positions [Q, T] int32, weights
    [Q, T] float32. Pairs of a row are numbered 1, 2, … in both segments; 0 is padding.
    """
    source = jax.ShapeDtypeStruct((rows, sizes[0]), np.int32)
    return {"source": source, "source_segments": source, **text_shapes(rows, sizes[1])}


@dataclass(frozen=True, eq=False)
class Laid:
    """In which row each piece stands, one after another from the left, and its number there."""

    row: Int64[np.ndarray, " P"]
    rows: int
    number: Int64[np.ndarray, " P"]

    def out(self, lengths: Int64[np.ndarray, " P"], width: int) -> "Places":
        """Where the tokens of pieces of these lengths stand."""
        each = np.bincount(self.row, lengths, self.rows).astype(np.int64)
        used = np.arange(width) < each[:, None]
        segment, position = (np.zeros(used.shape, np.int32) for _ in range(2))
        segment[used] = np.repeat(self.number, lengths)
        position[used] = ramps(lengths)
        return Places(used, segment, position, lengths)


@dataclass(frozen=True, eq=False)
class Places:
    """Which places of rows are used, by which piece of the row, and its how-manieth token."""

    used: Bool[np.ndarray, "Q T"]
    segment: Integer[np.ndarray, "Q T"]
    position: Integer[np.ndarray, "Q T"]
    lengths: Int64[np.ndarray, " P"]

    def taken(
        self, tokens: Integer[np.ndarray, " tokens"], begins: Int64[np.ndarray, " P"], pad: int
    ) -> Integer[np.ndarray, "Q T"]:
        """The tokens of pieces that begin there."""
        out = np.full(self.used.shape, pad, np.int32)
        out[self.used] = tokens[np.repeat(begins, self.lengths) + ramps(self.lengths)]
        return out
