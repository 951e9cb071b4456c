"""Batches without a cursor: global batch k is a function of the fingerprint and k, nothing else.

Any number of hosts and workers, stopped and resumed anywhere, see the same global batches: a host
asks for the rows of batch k that its devices need, and the only state of a run is the integer k.

Legend: B batch, T row length, Q rows read together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int64, Shaped

from jscale.data.cache import TokenCache
from jscale.data.heldout import held_out
from jscale.data.mixture import Schedule
from jscale.data.order import permute
from jscale.data.packing import Packing, Plan, read_rows

FIELDS = {
    "inputs": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segments": np.int32,
    "positions": np.int32,
}


@runtime_checkable
class Stream(Protocol):
    """What the training loop and `feed` need of any source of batches.

    `rows_of` must be a pure function of its arguments: that is what makes a run resumable anywhere.
    """

    @property
    def fingerprint(self) -> str:
        """Changes when any batch would change."""
        ...

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch; rows are the first dimension."""
        ...

    def rows_of(self, k: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows start to stop of global batch k."""
        ...


@runtime_checkable
class Rows(Protocol):
    """The rows of one side of one source, read at random."""

    def __len__(self) -> int: ...

    @property
    def length(self) -> int:
        """Places in a row of targets."""
        ...

    def count(self) -> int:
        """How many documents are in them, or pairs of texts."""
        ...

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, shape and dtype of the arrays of so many rows."""
        ...

    def tokens(self) -> int:
        """Targets of an epoch."""
        ...

    def read(self, rows: Int64[np.ndarray, " Q"]) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """These rows as arrays, in this order."""
        ...


def text_shapes(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of so many rows of text."""
    return {name: jax.ShapeDtypeStruct((rows, length), dtype) for name, dtype in FIELDS.items()}


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of one side of one cache, read at random. Workers make the plan anew from the files.

    `heldout` is the share held out, `side` is "train" or "heldout".
    """

    cache: TokenCache
    side: str
    heldout: float
    packing: Packing
    length: int
    pad: int
    name: str

    @cached_property
    def documents(self) -> Int64[np.ndarray, " documents"]:
        """The documents of this side, by their number in the cache."""
        out = held_out(self.cache.hashes, self.heldout, self.name)
        return np.flatnonzero(out if self.side == "heldout" else ~out)

    @cached_property
    def plan(self) -> Plan:
        """Where every pair stands; a document of one token offers none."""
        pairs = np.diff(self.cache.offsets)[self.documents] - 1
        return self.packing.plan(np.maximum(pairs, 0), self.length)

    @cached_property
    def begins(self) -> Int64[np.ndarray, " documents"]:
        """Where each document starts in the cache's tokens."""
        return self.cache.offsets[self.documents]

    def __len__(self) -> int:
        return len(self.plan.rows) - 1

    def count(self) -> int:
        """How many documents are in them."""
        return len(self.documents)

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of so many rows."""
        return text_shapes(rows, self.length)

    def tokens(self) -> int:
        """Pairs (input, target) of an epoch."""
        return int(self.plan.length.sum())

    def read(self, rows: Int64[np.ndarray, " Q"]) -> dict[str, Shaped[np.ndarray, "Q T"]]:
        """These rows as arrays, in this order."""
        return read_rows(self.cache.tokens, self.begins, self.plan, rows, self.length, self.pad)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the cached plan."""
        fields = (self.cache, self.side, self.heldout, self.packing, self.length, self.pad)
        return PackedRows, (*fields, self.name)


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Batches of rows from one source or a mixture: endless for training, or each row once.

    Sample n of a source is row n modulo its rows of epoch n // rows; with `shuffle`, each epoch is
    a permutation of its own. A batch may straddle epochs, so nothing is dropped or repeated.
    """

    parts: tuple[Any, ...]  # of Rows
    shares: tuple[int, ...]
    batch: int
    shuffle: bool
    seed: int
    fingerprint: str

    @property
    def length(self) -> int:
        """Places in a row."""
        return self.parts[0].length

    @cached_property
    def rows(self) -> int:
        """Rows of all parts, each counted once."""
        return sum(len(part) for part in self.parts)

    @cached_property
    def tokens(self) -> int:
        """Targets in these rows."""
        return sum(part.tokens() for part in self.parts)

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        return self.parts[0].shapes(self.batch)

    def global_batch(self, k: int) -> dict[str, Shaped[np.ndarray, "B ..."]]:
        """All rows of batch k."""
        return self.rows_of(k, 0, self.batch)

    def rows_of(self, k: int, start: int, stop: int) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """Rows start to stop of global batch k: all that a host must compute."""
        assert k >= 0 and 0 <= start <= stop <= self.batch, (k, start, stop, self.batch)
        samples = k * self.batch + np.arange(start, stop)
        part, number = self._schedule.locate(samples)
        return self._gather(part, self._rows_of_samples(part, number))

    def epoch_batches(self) -> int:
        """Batches of an evaluation that reads each row once."""
        return -(-self.rows // self.batch)

    def evaluation_batch(self, k: int) -> dict[str, Shaped[np.ndarray, "B ..."]]:
        """All rows of evaluation batch k."""
        return self.evaluation_rows_of(k, 0, self.batch)

    def evaluation_rows_of(
        self, k: int, start: int, stop: int
    ) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """Rows start to stop of evaluation batch k: each row once, then rows of weight 0."""
        assert 0 <= k < self.epoch_batches() and 0 <= start <= stop <= self.batch, (k, start, stop)
        samples = k * self.batch + np.arange(start, stop)
        ends = np.cumsum([len(part) for part in self.parts])
        real = samples < ends[-1]
        number = np.where(real, samples, ends[-1] - 1)
        part = np.searchsorted(ends, number, side="right")
        out = self._gather(part, number - np.append(0, ends)[part])
        for name in {"weights", "segments", "source_segments"} & out.keys():
            out[name][~real] = 0
        return out

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(self.shares)

    def _rows_of_samples(
        self, part: Int64[np.ndarray, " Q"], number: Int64[np.ndarray, " Q"]
    ) -> Int64[np.ndarray, " Q"]:
        sizes = np.array([len(rows) for rows in self.parts], np.int64)[part]
        epoch, row = np.divmod(number, sizes)
        if not self.shuffle:
            return row
        for which, turn in np.unique(np.stack([part, epoch]), axis=1).T.tolist():
            here = (part == which) & (epoch == turn)
            key = f"{self.seed} {which} {turn}"
            row[here] = permute(row[here], len(self.parts[which]), key)
        return row

    def _gather(
        self, part: Int64[np.ndarray, " Q"], rows: Int64[np.ndarray, " Q"]
    ) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        if len(self.parts) == 1:
            return self.parts[0].read(rows)
        shapes = self.parts[0].shapes(len(rows))
        out = {name: np.empty(array.shape, array.dtype) for name, array in shapes.items()}
        for which in np.unique(part).tolist():
            here = part == which
            for name, values in self.parts[which].read(rows[here]).items():
                out[name][here] = values
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what is cached."""
        fields = (self.parts, self.shares, self.batch, self.shuffle, self.seed)
        return TokenStream, (*fields, self.fingerprint)
