"""The mesh and every parameter on it, from what `jscale.explain.as_data` wrote."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jscale.checkpoint.sizes import readable
from jscale.errors import CheckpointError
from jscale.pictures.blocks import Block, Blocks, blocks_of, draw_blocks
from jscale.pictures.devices import Devices, draw_devices
from jscale.pictures.markup import Markup, element
from jscale.pictures.picture import Picture
from jscale.report.parts import details, exact, note

LINES = 32  # of "which part on which device"
NAMES = 4  # of parameters alike, in their heading


@dataclass(frozen=True)
class Dimension:
    """One dimension of a parameter: size, logical axis, the mesh axes that split it, and why."""

    size: int
    axis: str
    over: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Alike:
    """Parameters of one shape, dtype and placement, by name."""

    names: tuple[str, ...]
    dtype: str
    dimensions: tuple[Dimension, ...]
    bytes_per_device: int


@dataclass(frozen=True, eq=False)
class Placed:
    """A mesh with all that is on it. Bytes are those on one device."""

    mesh: Mapping[str, int]
    reason: str
    count: int
    parameters: tuple[Alike, ...]
    bytes_per_device: Mapping[str, int]
    replicated: tuple[str, ...]
    processes: tuple[int, ...] = ()  # of each device, in the mesh's order, where that is known

    @cached_property
    def devices(self) -> Devices:
        shape = tuple(self.mesh.values())
        return Devices(self.mesh, np.arange(math.prod(shape)).reshape(shape))

    @cached_property
    def _holders(self) -> dict[tuple[tuple[str, ...], ...], Mapping[Block, tuple[int, ...]]]:
        return {}

    def blocks(self, alike: Alike) -> Blocks:
        """Who holds which part of such a parameter."""
        over = tuple(d.over for d in alike.dimensions)
        shape, names = (
            tuple(d.size for d in alike.dimensions),
            tuple(d.axis for d in alike.dimensions),
        )
        if over not in self._holders:
            self._holders[over] = blocks_of(self.devices, shape, over).holders
        ways = tuple(math.prod(self.mesh[a] for a in axes) for axes in over)
        return Blocks(shape, names, ways, self._holders[over])


def placed(data: Mapping[str, Any]) -> Placed:
    """The layout that was written as data.

    Raises:
        CheckpointError: the data are not of that form.
    """
    try:
        mesh = {str(axis): int(size) for axis, size in data["mesh"].items()}
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, about in data["parameters"].items():
            dimensions = tuple(
                Dimension(
                    int(d["size"]), str(d["axis"]), tuple(map(str, d["over"])), str(d["reason"])
                )
                for d in about["dimensions"]
            )
            assert all(a in mesh for d in dimensions for a in d.over)
            key = (str(about["dtype"]), dimensions, int(about["bytes_per_device"]))
            groups.setdefault(key, []).append(str(name))
        assert 0 < math.prod(mesh.values()) <= 2**20 and min(mesh.values()) > 0
        return Placed(
            mesh,
            str(data["reason"]),
            int(data["count"]),
            tuple(Alike(tuple(names), *key) for key, names in groups.items()),
            {str(part): int(size) for part, size in data["bytes_per_device"].items()},
            tuple(map(str, data["replicated"])),
            tuple(int(process) for process in data.get("processes", ())),
        )
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise CheckpointError(f"the layout is not as jscale writes it ({error!r})") from error


def mesh_picture(where: Placed) -> Markup:
    devices = where.devices
    if devices.ids.size == 1:
        return Markup("")
    title = f"mesh {devices.words}"
    about = f"{devices.ids.size} device(s), numbered in the order of the axes"
    picture = Picture(draw_devices(devices), title, about)
    return element("div", picture.svg(), class_="wide", tabindex=0)


def mesh_words(where: Placed) -> Markup:
    """The mesh in a sentence: axes, devices, who chose it."""
    whole = [axis for axis, size in where.mesh.items() if size == 1]
    idle = f"; of size 1: {', '.join(whole)}" if whole else ""
    many = where.devices.ids.size
    if many == 1:
        return element("p", element("strong", "One device"), f", {where.reason}.")
    words = f" on {many:,} devices, {where.reason}{idle}.{process_words(where.processes)}"
    return element("p", element("strong", where.devices.words), words)


def process_words(processes: Sequence[int]) -> str:
    """Which devices each of several processes has.

    >>> process_words([0, 0, 1, 1, 0])
    ' Process 0 has device(s) 0–1, 4; process 1 has device(s) 2–3.'
    """
    spans: dict[int, list[list[int]]] = {}
    for device, process in enumerate(processes):
        mine = spans.setdefault(process, [])
        if mine and mine[-1][-1] == device - 1:
            mine[-1] = [mine[-1][0], device]
        else:
            mine.append([device])
    if len(spans) < 2:
        return ""
    ranges = {p: ", ".join("–".join(map(str, span)) for span in spans[p]) for p in sorted(spans)}
    told = [f"process {p} has device(s) {devices}" for p, devices in ranges.items()]
    rest = [f"and so on, {len(told)} in all"] if len(told) > LINES else []
    return f" P{'; '.join([*told[:LINES], *rest])[1:]}."


def parameter_list(where: Placed, only: set[str] | None = None) -> list[Markup]:
    """Every parameter: names, shape, axes, who decided, bytes, and a picture of its parts."""
    return [
        one_parameter(where, alike)
        for alike in where.parameters
        if only is None or only.intersection(alike.names)
    ]


def one_parameter(where: Placed, alike: Alike) -> Markup:
    blocks = where.blocks(alike)
    shape = " × ".join(f"{d.size:,}" for d in alike.dimensions) or "a single number"
    names = [element("h3", ", ".join(alike.names[:NAMES]))]
    if len(alike.names) > NAMES:
        names.append(
            details(f"and {len(alike.names) - NAMES} more like it", note(", ".join(alike.names)))
        )
    reasons = dict.fromkeys(
        d.reason for d in alike.dimensions if d.reason not in ("rule", "no name")
    )
    bytes_each = exact(alike.bytes_per_device, readable(alike.bytes_per_device))
    words = [
        element("p", f"{shape} {alike.dtype}, ", bytes_each, " on each device", each_of(alike)),
        element("p", "; ".join(axis_words(where, d) for d in alike.dimensions), class_="note"),
        element("p", f"decided by {'; '.join(reasons) or 'the rules'}", class_="note"),
    ]
    parts = blocks.words
    if len(parts) > 1:
        shown = parts[:LINES] + ([f"and {len(parts) - LINES} more"] if len(parts) > LINES else [])
        words.append(details("which part on which device", element("pre", "\n".join(shown))))
    title = f"{alike.names[0]}: {'; '.join(parts[:8])}"
    picture = Picture(draw_blocks(blocks, 300, 104), title, "; ".join(parts[:LINES]))
    return element("div", element("div", names, words), picture.svg(), class_="placed")


def each_of(alike: Alike) -> str:
    return f", each of {len(alike.names)}" if len(alike.names) > 1 else ""


def axis_words(where: Placed, dimension: Dimension) -> str:
    """`embed over fsdp=4`, or `head whole`."""
    ways = [f"{a}={where.mesh[a]}" for a in dimension.over if where.mesh[a] > 1]
    name = dimension.axis if dimension.axis != "None" else "no name"
    return f"{name} over {' × '.join(ways)}" if ways else f"{name} whole"


def totals(where: Placed) -> Markup:
    parts = ", ".join(f"{name} {readable(size)}" for name, size in where.bytes_per_device.items())
    whole = sum(where.bytes_per_device.values())
    text = [
        exact(where.count, f"{where.count:,}"),
        " parameters. State on each device: ",
        exact(whole, readable(whole)),
        f" ({parts}); activations come on top.",
    ]
    return element("p", text)
