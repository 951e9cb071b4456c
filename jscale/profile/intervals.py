"""Arithmetic on stretches of time: (start, end) pairs, in any one unit."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import NamedTuple, TypeVar

Interval = tuple[float, float]
Label = TypeVar("Label", bound=Hashable)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The stretches covered by at least one interval, apart from each other and in order.

    >>> union([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (6.0, 7.0), (9.0, 9.0)])
    [(0.0, 3.0), (4.0, 7.0)]
    """
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def length(intervals: Iterable[Interval]) -> float:
    """How much time the union of the intervals covers."""
    return sum((end - start for start, end in union(intervals)), 0.0)


def without(these: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    """What of the union of `these` no other covers.

    >>> without([(0.0, 10.0)], [(2.0, 3.0), (5.0, 12.0)])
    [(0.0, 2.0), (3.0, 5.0)]
    """
    out: list[Interval] = []
    holes = union(others)
    first = 0
    for start, end in union(these):
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        place = first
        while place < len(holes) and holes[place][0] < end:
            if holes[place][0] > start:
                out.append((start, holes[place][0]))
            start = max(start, holes[place][1])
            place += 1
        if start < end:
            out.append((start, end))
    return out


def gaps(intervals: Iterable[Interval]) -> list[Interval]:
    """The stretches between the first start and the last end that nothing covers.

    >>> gaps([(0.0, 2.0), (5.0, 6.0), (1.0, 3.0)])
    [(3.0, 5.0)]
    """
    covered = union(intervals)
    return [(a[1], b[0]) for a, b in zip(covered, covered[1:], strict=False)]


class Work(NamedTuple):
    """A stretch of time that belongs to `label`. Where several overlap the lowest `rank` counts."""

    start: float
    end: float
    label: Hashable
    rank: int = 0


def shares(work: Iterable[Work]) -> dict[Hashable, float]:
    """The time of each label, such that all of them add up to the time that any work covers.

    At each moment the work of the lowest rank counts; several of one rank share the moment evenly.

    >>> shares([Work(0.0, 4.0, "loop", 1), Work(1.0, 3.0, "a"), Work(2.0, 3.0, "b")])
    {'loop': 2.0, 'a': 1.5, 'b': 0.5}
    """
    pieces = [item for item in work if item.end > item.start]
    edges = sorted(
        edge for w, item in enumerate(pieces) for edge in ((item.start, 1, w), (item.end, 0, w))
    )
    out: dict[Hashable, float] = {}
    active: dict[int, Counter[Hashable]] = {}
    before = 0.0
    for moment, begins, w in edges:
        label, rank = pieces[w].label, pieces[w].rank
        if active and moment > before:
            now = active[min(active)]
            for name, count in now.items():
                out[name] = out.get(name, 0.0) + (moment - before) * count / now.total()
        before = moment
        here = active.setdefault(rank, Counter())
        here[label] += 1 if begins else -1
        if not here[label]:
            del here[label]
        if not here:
            del active[rank]
    return out
