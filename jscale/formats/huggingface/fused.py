"""Weights that a release keeps one after the other in one array."""

from collections.abc import Mapping
from dataclasses import replace

from jscale.formats.cut import Cut
from jscale.formats.table import Table


def in_turn(axis: int, sizes: Mapping[str, int]) -> dict[str, Cut]:
    """The weights of ours, by name, that share an axis in this order, with so many numbers each.

    >>> in_turn(0, {"q": 4, "k": 2})["k"]
    Cut(axis=0, first=4, count=2, of=6, step=1)
    """
    whole, first, cuts = sum(sizes.values()), 0, dict[str, Cut]()
    for name, size in sizes.items():
        cuts[name] = Cut(axis, first, size, whole)
        first += size
    return cuts


def fused(table: Table, cuts: Mapping[str, Cut]) -> Table:
    """The table with rows of blocks' weights, by what their names end with, as cuts of theirs."""
    pairs = list(table.pairs)
    for at, pair in enumerate(pairs):
        for name, cut in cuts.items():
            if pair.ours.endswith(f"/{name}"):
                pairs[at] = replace(pair, cut=cut)
    return replace(table, pairs=tuple(pairs))
