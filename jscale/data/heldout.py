"""Which documents are held out for evaluation: decided by their content, so copies never straddle.

A document belongs to one side by a hash of its text: adding, removing or reordering others moves
nothing across. When a side would be empty, it is given the document nearest to it (the lowest hash
is held out, the highest is trained on).

Legend: N documents.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, UInt64

from jscale.errors import DataError

SPACE = 1 << 64
T = TypeVar("T")


def document_hash(text: str) -> int:
    """A 64-bit hash of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def held_out(
    hashes: UInt64[np.ndarray, " N"],
    fraction: float,
    name: str = "the corpus",
    of: str = "document",
) -> Bool[np.ndarray, " N"]:
    """True for the documents that evaluation reads and training never sees.

    `of` says what has these hashes. Raises `DataError` when something is to be held out of a
    single distinct one.
    """
    if fraction == 0:
        return np.zeros(len(hashes), bool)
    lowest, highest = hashes.min(), hashes.max()
    if lowest == highest:
        divide = ", or divide it (TextFiles has separator)" if of == "document" else ""
        raise DataError(
            f"{name} has just one distinct {of}, so none can be held out for evaluation: "
            f"set heldout=0.0{divide}"
        )
    mask = hashes < np.uint64(int(fraction * SPACE))
    if not mask.any():
        return hashes == lowest
    return mask & (hashes != highest) if mask.all() else mask


def training_documents(
    items: Iterable[T], fraction: float, text: Callable[[T], str] = str
) -> Iterator[T]:
    """The documents that `held_out` leaves for training, streamed: the same rule in one pass.

    Items are documents, or have a `text` by which they are held out.

    Until one document is below the threshold, the lowest so far might be the one held out, so it is
    kept back; the highest held out so far might be the only one to train on.
    """
    threshold = int(fraction * SPACE)
    lowest: tuple[int, list[T]] = (SPACE, [])  # kept back, with its copies
    highest: tuple[int, list[T]] = (-1, [])
    below = kept = False
    for item in items:
        mark = document_hash(text(item))
        if mark < threshold:
            below = True
            highest = _better(highest, mark, item, mark > highest[0])
            continue
        kept = True
        if fraction == 0 or below or mark > lowest[0]:
            yield item
        elif mark == lowest[0]:
            lowest[1].append(item)
        else:
            yield from lowest[1]
            lowest = (mark, [item])
    if below:
        yield from lowest[1] if kept else highest[1]


def _better(best: tuple[int, list[T]], mark: int, item: T, wins: bool) -> tuple[int, list[T]]:
    if wins:
        return mark, [item]
    return (mark, [*best[1], item]) if mark == best[0] else best
