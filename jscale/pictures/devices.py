"""A mesh as a picture: its axes, and the device that stands at each place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jscale.mesh import MESH_AXES, MeshShape
from jscale.pictures.markup import Markup, element, number
from jscale.pictures.picture import Drawing, beside

MOST = 1024  # devices in one picture; of larger meshes the first part along an outer axis is drawn
ACROSS = 32  # devices in a row
SIDE, TALL = 30.0, 22.0  # of a device, where there is room for it
WIDE = 620.0  # of a whole picture
MARGIN = 22.0  # for the name and the numbers of an axis
COLOURS = 8


@dataclass(frozen=True, eq=False)
class Devices:
    """The devices of a mesh: the size of each axis, and ids (and processes) in the mesh's shape."""

    axes: Mapping[str, int]
    ids: np.ndarray
    processes: np.ndarray | None = None

    @property
    def used(self) -> dict[str, int]:
        """The axes that split anything."""
        return {name: size for name, size in self.axes.items() if size > 1}

    @property
    def words(self) -> str:
        """The mesh in a line: `data=2 fsdp=4`, or `one device`."""
        return " ".join(f"{name}={size}" for name, size in self.used.items()) or "one device"

    @cached_property
    def several(self) -> bool:
        """Whether more than one process owns them."""
        return self.processes is not None and len(set(self.processes.ravel().tolist())) > 1


def devices_of(mesh: Mesh | AbstractMesh | MeshShape) -> Devices:
    """The devices of a mesh; of an abstract one they are numbered in its order."""
    if isinstance(mesh, MeshShape):
        axes = {name: getattr(mesh, name) for name in map(str, MESH_AXES)}
    else:
        axes = {str(name): int(size) for name, size in mesh.shape.items()}
    shape = tuple(axes.values())
    if not isinstance(mesh, Mesh):
        return Devices(axes, np.arange(math.prod(shape)).reshape(shape))
    flat = mesh.devices.ravel().tolist()
    ids = np.array([device.id for device in flat]).reshape(shape)
    return Devices(axes, ids, np.array([d.process_index for d in flat]).reshape(shape))


def draw_devices(devices: Devices, colours: Mapping[int, int] | None = None) -> Drawing:
    """The mesh. A device's colour is `colours[its id]`, else that of its process."""
    ids, notes = devices.ids, []
    names = list(devices.axes)
    for axis, name in enumerate(names):  # the outermost axes first
        if ids.size > MOST and ids.shape[axis] > 1:
            notes.append(f"1 of {ids.shape[axis]} along {name}")
            ids = ids.take([0], axis)
    if colours is None and devices.several and devices.processes is not None:
        owners = devices.processes.ravel().tolist()
        colours = dict(zip(devices.ids.ravel().tolist(), owners, strict=True))
        notes.append("a colour for each process")
    kept = [name for name, size in zip(names, ids.shape, strict=True) if size > 1]
    drawing = panels(ids.squeeze(), kept, colours or {})
    if not notes:
        return drawing
    text = f"drawn: {', '.join(notes)}"
    words = element("text", text, class_="soft", x=0, y=12)
    return beside([drawing, Drawing(words, 6.1 * len(text), 16)], 10, down=True)


def panels(ids: np.ndarray, names: list[str], colours: Mapping[int, int]) -> Drawing:
    """Two axes as a grid; each further one as copies of it, side by side while there is room."""
    if ids.ndim <= 2:
        ids = np.atleast_2d(ids)
        if ids.shape[0] > max(8, 2 * ids.shape[1]):  # a page is wider than a screen is high
            return grid(ids.T, names[::-1], colours)
        return grid(ids, names, colours)
    inner = []
    for i in range(len(ids)):
        drawing = panels(ids[i], names[1:], colours)
        title = element("text", f"{names[0]} {i}", class_="soft", x=0, y=11)
        inner.append(beside([Drawing(title, 40, 16), drawing], 0, down=True))
    room = max(1, int((WIDE + 14) // (inner[0].width + 14)))
    rows = [beside(inner[i : i + room], 14) for i in range(0, len(inner), room)]
    return beside(rows, 14, down=True)


def grid(ids: np.ndarray, names: list[str], colours: Mapping[int, int]) -> Drawing:
    """Rows and columns of devices, with the names of the axes and the numbers along them."""
    columns, rows = names[-1] if names else "", names[-2] if len(names) > 1 else ""
    fold = folded(ids.shape[1])
    side = max(7.0, min(SIDE, WIDE / fold))
    left = MARGIN + 8 if rows else 0.0
    shapes, y = [], MARGIN + 6 if columns else 0.0
    if columns:
        shapes.append(bracket(f"{columns} = {ids.shape[1]}", left, side * fold))
    begin = y
    for r, row in enumerate(ids):
        for chunk in row.reshape(-1, fold):
            for c, device in enumerate(chunk.tolist()):
                shapes.append(place(device, left + c * side, y, side, colours))
            y += TALL
        y += 4 if fold < len(row) and r + 1 < len(ids) else 0
    if rows:
        turned = bracket(f"{rows} = {len(ids)}", 0.0, y - begin)
        shapes.append(element("g", turned, transform=f"translate(0 {number(y)}) rotate(-90)"))
    return Drawing(Markup("".join(shapes)), left + side * fold + 1, y + 1)


def folded(columns: int) -> int:
    """How many devices stand in one line: all, or the largest even part that fits.

    >>> folded(8), folded(64), folded(17)
    (8, 32, 17)
    """
    if columns <= ACROSS:
        return columns
    return max(d for d in range(1, ACROSS + 1) if columns % d == 0)


def bracket(words: str, begin: float, length: float) -> Markup:
    """The name of an axis above a line as long as the axis."""
    line = f"M{number(begin + 1)} {MARGIN + 2}v-4H{number(begin + length - 1)}v4"
    text = element(
        "text", words, class_="soft", x=begin + length / 2, y=MARGIN - 8, text_anchor="middle"
    )
    return Markup(element("path", class_="axis", d=line) + text)


def place(device: int, x: float, y: float, side: float, colours: Mapping[int, int]) -> Markup:
    colour = colours.get(device, 0) % COLOURS
    cell = element("rect", class_=f"cell f{colour} t1", x=x, y=y, width=side, height=TALL)
    if side < 7.0 * len(str(device)) + 2:
        return cell
    middle = x + side / 2
    return Markup(
        cell + element("text", str(device), x=middle, y=y + TALL / 2 + 4, text_anchor="middle")
    )
