"""Which documents are held out for evaluation: decided by their content, so copies never straddle.

A document belongs to one side by a hash of its text: adding, removing or reordering others moves
nothing across. When a side would be empty, it is given the document nearest to it (the lowest hash
is held out, the highest is trained on).

Legend: N documents.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, UInt64

from jscale.errors import DataError

SPACE = 1 << 64


def document_hash(text: str) -> int:
    """A 64-bit hash of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def held_out(
    hashes: UInt64[np.ndarray, " N"], fraction: float, name: str = "the corpus"
) -> Bool[np.ndarray, " N"]:
    """True for the documents that evaluation reads and training never sees.

    Raises `DataError` when something is to be held out of one distinct document.
    """
    if fraction == 0:
        return np.zeros(len(hashes), bool)
    lowest, highest = hashes.min(), hashes.max()
    if lowest == highest:
        raise DataError(
            f"{name} has just one distinct document, so none can be held out for evaluation: "
            "set heldout=0.0, or divide it (TextFiles has separator)"
        )
    mask = hashes < np.uint64(int(fraction * SPACE))
    if not mask.any():
        return hashes == lowest
    return mask & (hashes != highest) if mask.all() else mask


def training_documents(texts: Iterable[str], fraction: float) -> Iterator[str]:
    """The documents that `held_out` leaves for training, streamed: the same rule in one pass.

    Until one document is below the threshold, the lowest so far might be the one held out, so it is
    kept back; the highest held out so far might be the only one to train on.
    """
    threshold = int(fraction * SPACE)
    lowest: tuple[int, list[str]] = (SPACE, [])  # kept back, with its copies
    highest: tuple[int, list[str]] = (-1, [])
    below = kept = False
    for text in texts:
        mark = document_hash(text)
        if mark < threshold:
            below = True
            highest = _better(highest, mark, text, mark > highest[0])
            continue
        kept = True
        if fraction == 0 or below or mark > lowest[0]:
            yield text
        elif mark == lowest[0]:
            lowest[1].append(text)
        else:
            yield from lowest[1]
            lowest = (mark, [text])
    if below:
        yield from lowest[1] if kept else highest[1]


def _better(best: tuple[int, list[str]], mark: int, text: str, wins: bool) -> tuple[int, list[str]]:
    if wins:
        return mark, [text]
    return (mark, [*best[1], text]) if mark == best[0] else best
