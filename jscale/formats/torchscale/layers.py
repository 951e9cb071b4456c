"""Stacked layers, by the names of their weights: which of them are of one kind."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """The layers of one kind, where several take turns: their weights by name and as stacked.

    `ours` is what the names begin with, `over` which layers they are stacked from.
    """

    ours: str
    weights: dict[str, Any]
    over: Mapping[str, Sequence[int]]


def kinds(weights: Mapping[str, Any], blocks: str) -> Iterator[Kind]:
    """The kinds of layers of a stack whose names begin with `blocks`, in their order."""
    inside = {name[len(blocks) :]: w for name, w in weights.items() if name.startswith(blocks)}
    found = (re.match(r"layers/(\d+)/", name) for name in inside)
    turns = [f"layers/{i}/" for i in sorted({int(match[1]) for match in found if match})] or [""]
    for i, turn in enumerate(turns):
        here = {name[len(turn) :]: w for name, w in inside.items() if name.startswith(turn)}
        layers = len(turns) * next(iter(here.values())).shape[0]
        yield Kind(f"{blocks}{turn}", here, {"layer": range(i, layers, len(turns))})
