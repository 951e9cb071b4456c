"""Fewer points for a long curve, each one a point of the curve: no spike and no gap is lost."""

import numpy as np


def thinned(y: np.ndarray, points: int) -> np.ndarray:
    """The indexes to keep, in order: of every stretch the smallest, the largest, the first that is
    not finite; and the two ends. All of them where there are no more than `points`.

    >>> thinned(np.array([0.0, 9.0, 1.0, 1.0, 1.0, -5.0, 2.0, 2.0]), 6).tolist()
    [0, 1, 5, 6, 7]
    """
    count = len(y)
    if count <= points:
        return np.arange(count)
    stretches = max(1, (points - 2) // 2)
    edges = np.linspace(0, count, stretches + 1).astype(int)
    finite = np.isfinite(y)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    keep = {0, count - 1}
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        if finite[begin:end].any():
            keep |= {begin + int(low[begin:end].argmin()), begin + int(high[begin:end].argmax())}
        if not finite[begin:end].all():
            keep.add(begin + int((~finite[begin:end]).argmax()))
    return np.array(sorted(keep))


def stretches(y: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of every unbroken stretch of finite values.

    >>> stretches(np.array([1.0, np.nan, 2.0, 3.0]))
    [(0, 1), (2, 4)]
    """
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
