"""`jscale.draw`: a mesh, a layout or a placed array as a picture."""

from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jscale.errors import ConfigError
from jscale.mesh import Layout, MeshShape
from jscale.mesh.rules import as_tuple
from jscale.pictures.blocks import blocks_of_array, draw_blocks
from jscale.pictures.devices import Devices, devices_of, draw_devices
from jscale.pictures.markup import Markup, element
from jscale.pictures.picture import Drawing, Picture, beside


def draw(thing: Any) -> Picture:
    """A picture of `thing`, which notebooks show and `.save("it.svg")` writes.

    A mesh (`MeshShape`, or JAX's own, abstract or not) shows its axes and the device at each
    place; a `Layout` its mesh and what each logical axis is split over; an array, or anything else
    with a shape and a sharding, which devices hold which block of it.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(thing, MeshShape | Mesh | AbstractMesh):
        devices = devices_of(thing)
        return titled(draw_devices(devices), f"mesh {devices.words}", mesh_words(devices))
    if isinstance(thing, Layout):
        return draw_layout(thing)
    if hasattr(thing, "shape") and getattr(thing, "sharding", None) is not None:
        return draw_array(thing)
    kind = type(thing).__name__
    raise ConfigError(
        f"draw takes a mesh, a layout, or an array with a sharding, not {kind}"
        + ("; draw one of its arrays" if isinstance(thing, dict | list | tuple) else "")
    )


def draw_array(array: Any) -> Picture:
    """The blocks of a placed array, and its devices in the colours of what they hold."""
    blocks = blocks_of_array(array)
    size = "×".join(map(str, blocks.shape)) or "a number"
    spec = getattr(array.sharding, "spec", None)
    words = f"{getattr(array, 'dtype', '')} {size}".strip()
    if spec is not None:
        words += f" as P({', '.join(map(repr, spec))})"
    drawing = draw_blocks(blocks, 300.0, 140.0)
    if isinstance(array.sharding, NamedSharding):
        devices = devices_of(array.sharding.mesh)
        colours = blocks.colours if len(blocks.holders) > 1 else dict.fromkeys(blocks.colours, 6)
        drawing = beside([draw_devices(devices, colours), drawing], 28)
    return titled(drawing, words, "; ".join(blocks.words))


def draw_layout(layout: Layout) -> Picture:
    """The mesh, and below it two lists: weights and activations, each logical axis with the mesh
    axes that split it."""
    devices = devices_of(layout.mesh)
    tables = {"weights": layout.rules.weights, "activations": layout.rules.activations}
    lists, said = [], []
    for name, table in tables.items():
        rows = [
            (axis, [f"{a}={devices.axes[a]}" for a in as_tuple(wanted) if devices.axes[a] > 1])
            for axis, wanted in table.items()
        ]
        said += [f"{name}: {axis} over {', '.join(ways)}" for axis, ways in rows if ways]
        lists.append(rule_list(name, rows))
    drawing = beside([draw_devices(devices), beside(lists, 28)], 18, down=True)
    return titled(drawing, f"layout on {devices.words}", "; ".join(said) or "nothing is split")


def rule_list(name: str, rows: list[tuple[str, list[str]]]) -> Drawing:
    shapes = [element("text", name, class_="title", x=0, y=11)]
    for i, (axis, ways) in enumerate(rows):
        y = 30 + 16 * i
        shapes.append(element("text", axis, class_=None if ways else "soft", x=0, y=y))
        words = " × ".join(ways) or "whole"
        shapes.append(element("text", words, class_=None if ways else "soft", x=80, y=y))
    return Drawing(Markup("".join(shapes)), 230, 20 + 16 * len(rows))


def mesh_words(devices: Devices) -> str:
    """The mesh for a person who cannot see it."""
    order = ", ".join(map(str, devices.ids.ravel().tolist()[:64]))
    return f"{devices.ids.size} device(s), in the order of the axes: {order}"


def titled(drawing: Drawing, title: str, description: str) -> Picture:
    words = element("text", title, class_="title", x=0, y=11)
    head = Drawing(words, 7.9 * len(title), 20)
    return Picture(beside([head, drawing], 4, down=True), title, description)
