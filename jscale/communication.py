"""What a recipe's compiled train step sends between devices, as a table to read."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jscale.ahead import compile_for
from jscale.checkpoint.sizes import readable
from jscale.columns import aligned, html_table
from jscale.mesh import MeshShape, abstract_mesh
from jscale.mesh.collectives import Collective, collectives
from jscale.mesh.target import Target
from jscale.recipe import Recipe

HEADER = ("collective", "over", "instructions", "times", "sent per device")


class Row(NamedTuple):
    """The collectives of one kind over the same mesh axes, in one train step.

    `times` and `sent` (bytes that one device sends) are None where a loop's length is not known.
    """

    kind: str
    axes: tuple[str, ...]
    instructions: int
    times: int | None
    sent: int | None

    def cells(self) -> tuple[str, ...]:
        """The row in words."""
        number = lambda n, text: "not known" if n is None else text(n)
        return (
            self.kind,
            " x ".join(self.axes),
            str(self.instructions),
            number(self.times, str),
            number(self.sent, readable),
        )


@dataclass(frozen=True)
class Traffic:
    """The collectives of a compiled train step on a mesh.

    Printed, or as the last value of a notebook's cell, it is a table of kinds and mesh axes.
    """

    mesh: MeshShape
    collectives: tuple[Collective, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row per kind and mesh axes, the most bytes first."""
        groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = defaultdict(list)
        for each in self.collectives:
            groups[each.kind, each.axes].append(each)
        rows = [
            Row(
                kind,
                axes,
                len(group),
                total([c.times for c in group]),
                total([c.sent_in_all for c in group]),
            )
            for (kind, axes), group in groups.items()
        ]
        return tuple(sorted(rows, key=lambda row: (-(row.sent or 0), row.kind, row.axes)))

    @property
    def sent(self) -> int | None:
        """Bytes that one device sends in a step; None where a loop's length is not known."""
        return total([row.sent for row in self.rows])

    def __str__(self) -> str:
        if not self.collectives:
            return f"mesh: {self.mesh}\nno collectives"
        lines = aligned(HEADER, [row.cells() for row in self.rows])
        return "\n".join([f"mesh: {self.mesh}", *lines])

    def _repr_html_(self) -> str:
        return html_table(str(self.mesh), HEADER, [row.cells() for row in self.rows])


def total(numbers: Sequence[int | None]) -> int | None:
    """Their sum; None if one is not known."""
    known = [n for n in numbers if n is not None]
    return sum(known) if len(known) == len(numbers) else None


def traffic(recipe: Recipe, machine: Target | str | None = None) -> Traffic:
    """The collectives of a recipe's train step, compiled for the devices at hand or a machine.

    Raises:
        ConfigError: the recipe does not fit the devices, or there is no such machine.
    """
    report = compile_for(recipe, machine)
    return Traffic(report.mesh, collectives(report.program, abstract_mesh(report.mesh)))
