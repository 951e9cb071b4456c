"""One array over a mesh as a picture: its blocks, and which devices hold each of them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jscale.mesh.rules import as_tuple
from jscale.pictures.devices import COLOURS, Devices
from jscale.pictures.markup import Markup, element
from jscale.pictures.picture import Drawing, beside

Block = tuple[int, ...]  # which part along each dimension
PANELS = 8  # parts along a third dimension that are drawn
CELLS = 16  # parts along a dimension that are drawn


@dataclass(frozen=True)
class Blocks:
    """An array in equal blocks: its shape, how many along each dimension, who holds which.

    `names` are those of its dimensions, where they have any; `holders` has device ids.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    ways: tuple[int, ...]
    holders: Mapping[Block, tuple[int, ...]]

    @property
    def colours(self) -> dict[int, int]:
        """A colour for each device: that of the block which it holds."""
        return {d: i for i, block in enumerate(sorted(self.holders)) for d in self.holders[block]}

    def part(self, block: Block) -> str:
        """The block as one writes it in Python.

        >>> Blocks((4, 6), ("", ""), (2, 1), {}).part((1, 0))
        '[2:4, :]'
        """
        each = [size // ways for size, ways in zip(self.shape, self.ways, strict=True)]
        sides = [
            f"{i * n}:{(i + 1) * n}" if ways > 1 else ":"
            for i, n, ways in zip(block, each, self.ways, strict=True)
        ]
        return f"[{', '.join(sides)}]"

    @property
    def words(self) -> list[str]:
        """Who holds what, a sentence a block; one sentence where all hold the same."""
        if len(self.holders) == 1:
            held = self.holders[min(self.holders)]
            return ["whole on every device" if len(held) > 1 else "whole on the one device"]
        return [
            f"{self.part(block)} on {plural(held)}" for block, held in sorted(self.holders.items())
        ]


def plural(ids: Sequence[int]) -> str:
    return f"device{'s' if len(ids) > 1 else ''} {ranges(ids)}"


def ranges(ids: Sequence[int]) -> str:
    """Device ids in short.

    >>> ranges([0, 1, 2, 3, 8]), ranges([0, 4]), ranges([0, 2, 4, 6, 8, 10])
    ('0–3, 8', '0, 4', '0, 2, … 10')
    """
    ids = sorted(ids)
    steps = {b - a for a, b in itertools.pairwise(ids)}
    if len(ids) > 4 and len(steps) == 1 and steps != {1}:
        return f"{ids[0]}, {ids[1]}, … {ids[-1]}"
    runs: list[list[int]] = []
    for i in ids:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def blocks_of(
    devices: Devices,
    shape: Sequence[int],
    mesh_axes: Sequence[Sequence[str]],
    names: Sequence[str] = (),
) -> Blocks:
    """The blocks of an array each of whose dimensions is split over some axes of a mesh."""
    sizes, order = devices.axes, list(devices.axes)
    holders: dict[Block, list[int]] = {}
    for at, device in zip(np.ndindex(devices.ids.shape), devices.ids.ravel().tolist(), strict=True):
        block = []
        for axes in mesh_axes:
            index = 0
            for axis in axes:
                index = index * sizes[axis] + at[order.index(axis)]
            block.append(index)
        holders.setdefault(tuple(block), []).append(device)
    return Blocks(
        tuple(shape),
        tuple(names) or ("",) * len(shape),
        tuple(math.prod(sizes[a] for a in axes) for axes in mesh_axes),
        {block: tuple(ids) for block, ids in holders.items()},
    )


def blocks_of_array(array: Any) -> Blocks:
    """The blocks of an array that is somewhere (anything with a shape and a sharding)."""
    where: jax.sharding.Sharding = array.sharding
    shape = tuple(array.shape)
    if isinstance(where, NamedSharding):
        from jscale.pictures.devices import devices_of

        spec = [as_tuple(part) for part in where.spec]
        spec += [()] * (len(shape) - len(spec))
        return blocks_of(devices_of(where.mesh), shape, spec)
    holders: dict[Block, list[int]] = {}
    part = where.shard_shape(shape)
    for device, index in where.devices_indices_map(shape).items():
        block = tuple((s.start or 0) // n if n else 0 for s, n in zip(index, part, strict=True))
        holders.setdefault(block, []).append(device.id)
    ways = tuple(whole // n if n else 1 for whole, n in zip(shape, part, strict=True))
    named = ("",) * len(shape)
    return Blocks(shape, named, ways, {block: tuple(ids) for block, ids in holders.items()})


def draw_blocks(blocks: Blocks, width: float | int = 260, height: float | int = 120) -> Drawing:
    """The array as a rectangle of its blocks, each with the ids of the devices that hold it.

    Of more than two split dimensions the first are drawn as copies; dimensions that nothing
    splits are left out where others are.
    """
    rows, columns, outer = faces(blocks)
    corners = list(itertools.product(*(range(blocks.ways[d]) for d in outer)))
    drawn, drawings = corners[:PANELS], []
    for corner in drawn:
        fixed = dict(zip(outer, corner, strict=True))
        title = ", ".join(f"{label(blocks, d)} part {i + 1}" for d, i in fixed.items())
        words = [Drawing(element("text", title, class_="soft", x=0, y=11), 60, 16)] if title else []
        face = rectangle(blocks, rows, columns, fixed, (width, height))
        drawings.append(beside([*words, face], 0, down=True))
    if len(drawn) < len(corners):
        more = f"and {len(corners) - len(drawn)} more"
        drawings.append(Drawing(element("text", more, class_="soft", x=0, y=11), 80, 16))
    return beside(drawings, 12, down=True)


def faces(blocks: Blocks) -> tuple[int | None, int | None, list[int]]:
    """The dimensions drawn as rows and as columns, and those drawn as copies."""
    split = [d for d, ways in enumerate(blocks.ways) if ways > 1]
    last = len(blocks.shape) - 1
    if len(split) >= 2:
        return split[-2], split[-1], split[:-2]
    if last < 1:
        return None, (0 if last == 0 else None), []
    if split and split[0] < last:
        return split[0], last, []
    return last - 1, last, []


def label(blocks: Blocks, dimension: int) -> str:
    name = blocks.names[dimension] or f"dimension {dimension}"
    ways = blocks.ways[dimension]
    part = f", {CELLS} of {ways} parts" if ways > CELLS else ""
    return f"{name} ({blocks.shape[dimension]}){part}"


def rectangle(
    blocks: Blocks,
    rows: int | None,
    columns: int | None,
    fixed: Mapping[int, int],
    size: tuple[float | int, float | int],
) -> Drawing:
    """One face of the array: rows downwards, columns to the right, the names of both outside."""
    down = blocks.ways[rows] if rows is not None else 1
    along = blocks.ways[columns] if columns is not None else 1
    left, top = (20.0 if rows is not None else 0.0), (18.0 if columns is not None else 0.0)
    wide, tall = size[0] - left, (size[1] if rows is not None else 30.0) - top
    wide, tall = min(wide, 1e3), max(tall, 15.0 * min(down, CELLS))
    shapes: list[Markup] = []
    if columns is not None:
        middle = left + wide / 2
        shapes.append(
            element(
                "text", label(blocks, columns), class_="soft", x=middle, y=12, text_anchor="middle"
            )
        )
    if rows is not None:
        turn = f"translate(12 {top + tall / 2:g}) rotate(-90)"
        shapes.append(
            element(
                "text", label(blocks, rows), class_="soft", transform=turn, text_anchor="middle"
            )
        )
    order = {block: i for i, block in enumerate(sorted(blocks.holders))}
    a, b = tall / min(down, CELLS), wide / min(along, CELLS)
    for r, c in itertools.product(range(min(down, CELLS)), range(min(along, CELLS))):
        found = {**fixed, **({rows: r} if rows is not None else {})}
        found |= {columns: c} if columns is not None else {}
        block = tuple(found.get(d, 0) for d in range(len(blocks.shape)))
        colour = "whole" if len(order) == 1 else f"f{order[block] % COLOURS} t1"
        where = {"x": left + c * b, "y": top + r * a, "width": b, "height": a}
        tip = element("title", f"{blocks.part(block)} on {plural(blocks.holders[block])}")
        shapes.append(element("rect", tip, class_=f"cell {colour}", **where))
        words = fitting(blocks, block, b)
        if words and a >= 12:
            place = {"x": left + (c + 0.5) * b, "y": top + (r + 0.5) * a + 4}
            shapes.append(element("text", words, text_anchor="middle", **place))
    shapes.append(element("rect", class_="box", x=left, y=top, width=wide, height=tall))
    return Drawing(Markup("".join(shapes)), left + wide + 1, top + tall + 1)


def fitting(blocks: Blocks, block: Block, width: float) -> str:
    """The devices that hold a block, in words that fit into it; nothing where none do."""
    held = blocks.holders[block]
    if len(blocks.holders) == 1 and len(held) > 1:
        options = ["whole on every device", "every device", "all"]
    else:
        more = len(held) - 1
        options = [ranges(held), f"{min(held)} +{more}" if more else "", f"{min(held)}…", ""]
    return next((text for text in options if text and 6.2 * len(text) + 2 <= width), "")
