"""Which tokens stand in which row: a plan made once from the lengths, read at random.

A document of n tokens offers n-1 pairs (input, next token). A piece (document, start, length) is a
run of its pairs; a row of T places holds pieces one after another, the rest is padding of weight 0.

Legend: N documents, P pieces, Q rows read together, T row length.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, Integer, Shaped


@dataclass(frozen=True, eq=False)
class Plan:
    """Row r holds the pieces `rows[r]` up to `rows[r + 1]`, in this order."""

    rows: Int64[np.ndarray, " bounds"]
    document: Int64[np.ndarray, " P"]
    start: Int64[np.ndarray, " P"]
    length: Int64[np.ndarray, " P"]


@runtime_checkable
class Packing(Protocol):
    """A way to lay documents into rows."""

    def plan(self, pairs: Int64[np.ndarray, " N"], length: int) -> Plan:
        """A plan in which every pair of every document stands exactly once."""
        ...


@dataclass(frozen=True)
class Split:
    """Documents end to end, cut where a row is full: no padding but in the last row."""

    def plan(self, pairs: Int64[np.ndarray, " N"], length: int) -> Plan:
        """Cut at the ends of documents and of rows.

        >>> plan = Split().plan(np.array([3, 4]), 5)
        >>> plan.document.tolist(), plan.start.tolist(), plan.length.tolist(), plan.rows.tolist()
        ([0, 1, 1], [0, 0, 2], [3, 2, 2], [0, 2, 3])
        """
        ends = np.cumsum(pairs)
        total = int(ends[-1]) if len(ends) else 0
        cuts = np.union1d(np.arange(0, total, length), ends[ends < total])
        document = np.searchsorted(ends, cuts, side="right")
        return Plan(
            rows=np.append(np.searchsorted(cuts, np.arange(0, total, length)), len(cuts)),
            document=document,
            start=cuts - (ends - pairs)[document],
            length=np.diff(cuts, append=total),
        )


@dataclass(frozen=True)
class Whole:
    """Documents kept in one row each (best fit, longest first); only those beyond T are cut."""

    def plan(self, pairs: Int64[np.ndarray, " N"], length: int) -> Plan:
        """Cut long documents into full rows and a rest, then fit the pieces into rows."""
        count = -(-pairs // length)
        document = np.repeat(np.arange(len(pairs)), count)
        start = ramps(count) * length
        lengths = np.minimum(pairs[document] - start, length)
        row = _best_fit(lengths, length)
        order = np.argsort(row, kind="stable")
        rows = np.bincount(row, minlength=int(row.max()) + 1 if len(row) else 0)
        return Plan(
            rows=np.append(0, np.cumsum(rows)),
            document=document[order],
            start=start[order],
            length=lengths[order],
        )


def _best_fit(lengths: Int64[np.ndarray, " P"], capacity: int) -> Int64[np.ndarray, " P"]:
    """The row of each piece: longest first, into the fullest row that still has room.

    Pieces of one length are placed together, so the cost follows the number of distinct lengths.
    """
    order = np.argsort(-lengths, kind="stable")
    row = np.empty(len(lengths), np.int64)
    room: dict[int, list[Int64[np.ndarray, " rows"]]] = {}  # rows by the places left in them
    occupied, opened, done = 0, 0, 0  # bit r of `occupied`: some row has r places left
    sizes, counts = np.unique(-lengths, return_counts=True)
    for size, count in zip((-sizes).tolist(), counts.tolist(), strict=True):
        while count:
            fits = occupied >> size
            if fits:
                left = size + (fits & -fits).bit_length() - 1
                rows = np.concatenate(room.pop(left))
                occupied ^= 1 << left
            else:
                left = capacity
                rows = opened + np.arange(-(-count // (left // size)))
                opened += len(rows)
            each = left // size
            used = min(len(rows), -(-count // each))
            placed = min(count, used * each)
            row[order[done : done + placed]] = np.repeat(rows[:used], each)[:placed]
            last = placed - (used - 1) * each
            for now, some in (
                (left, rows[used:]),
                (left - each * size, rows[: used - 1]),
                (left - last * size, rows[used - 1 : used]),
            ):
                if now and len(some):
                    room.setdefault(now, []).append(some)
                    occupied |= 1 << now
            done, count = done + placed, count - placed
    return row


def ramps(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " total"]:
    """0, 1, .. up to each count, one after another.

    >>> ramps(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def read_rows(
    tokens: Integer[np.ndarray, " tokens"],
    begins: Int64[np.ndarray, " N"],
    plan: Plan,
    rows: Int64[np.ndarray, " Q"],
    length: int,
    pad: int,
) -> dict[str, Shaped[np.ndarray, "Q T"]]:
    """The rows as arrays; `begins` is where each document of the plan starts in `tokens`.

    inputs, targets int32 (`pad` in padding); weights float32, 1 or 0; segments int32, 1, 2, .. for
    the pieces of a row and 0 in padding; positions int32 from 0 in each piece.
    """
    pieces_in_row = plan.rows[rows + 1] - plan.rows[rows]
    segment = ramps(pieces_in_row)
    pieces = np.repeat(plan.rows[rows], pieces_in_row) + segment
    lengths = plan.length[pieces]
    position = ramps(lengths)
    # Rows are filled from the left, so the places in use are a prefix of each row.
    ends = np.cumsum(lengths)[np.cumsum(pieces_in_row) - 1]
    used: Bool[np.ndarray, "Q T"] = np.arange(length) < np.diff(ends, prepend=0)[:, None]
    source = np.repeat(begins[plan.document[pieces]] + plan.start[pieces], lengths) + position
    return {
        "inputs": _placed(used, tokens[source], pad, np.int32),
        "targets": _placed(used, tokens[source + 1], pad, np.int32),
        "weights": used.astype(np.float32),
        "segments": _placed(used, np.repeat(segment + 1, lengths), 0, np.int32),
        "positions": _placed(used, position, 0, np.int32),
    }


def _placed(
    used: Bool[np.ndarray, "Q T"],
    values: Integer[np.ndarray, " places"],
    fill: int,
    dtype: type[np.generic],
) -> Integer[np.ndarray, "Q T"]:
    if used.all():
        return values.astype(dtype).reshape(used.shape)
    out = np.full(used.shape, fill, dtype)
    out[used] = values
    return out
