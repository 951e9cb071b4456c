"""Rows of different lengths, read in few shapes: each shape is compiled once."""

# N rows.

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PLACES = 1 << 11  # tokens in one batch


class Group(NamedTuple):
    """Rows, by their number, that are read together as `height` rows of `width` places."""

    rows: tuple[int, ...]
    height: int
    width: int


def width_of(length: int, multiple: int = 1) -> int:
    """The least of 16, 32, 48, 64, 96, 128, 192, … that holds so many places.

    With `multiple`, these are multiples of it, too.

    >>> [width_of(n) for n in (1, 16, 17, 40, 65, 100, 129)]
    [16, 16, 32, 48, 96, 128, 192]
    >>> width_of(17, multiple=5), width_of(17, multiple=32)
    (80, 32)
    """
    unit = math.lcm(16, multiple)
    count = -(-length // unit)
    power = 1 << max(0, count - 1).bit_length()
    between = power * 3 // 4
    return unit * (between if power >= 4 and between >= count else power)


def groups(
    lengths: Sequence[int], ways: int = 1, multiple: int = 1, places: int = PLACES
) -> Iterator[Group]:
    """Rows of these lengths in groups of one width each, about `places` places in a group.

    Every group of a width has the same height, a multiple of `ways`, however many rows there are,
    and so one row is computed by one program whatever else is read with it. Groups that are not
    full are to be filled.

    >>> [(g.rows, g.height, g.width) for g in groups([5, 20, 9, 12], places=32)]
    [((0, 2), 2, 16), ((3,), 2, 16), ((1,), 1, 32)]
    """
    by_width: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        by_width.setdefault(width_of(length, multiple), []).append(row)
    for width, rows in sorted(by_width.items()):
        height = max(1, places // width // ways) * ways
        for start in range(0, len(rows), height):
            yield Group(tuple(rows[start : start + height]), height, width)
