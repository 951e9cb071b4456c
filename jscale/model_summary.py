"""What a network is made of, as a table to read: every weight, its axes, its arithmetic, its bytes.

Nothing is made and no device is asked for: of a network of any size only shapes are known.
"""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from jscale.checkpoint.names import named_leaves
from jscale.checkpoint.sizes import readable
from jscale.columns import aligned, html_table
from jscale.config.reference import written
from jscale.errors import ConfigError
from jscale.flops import products, width
from jscale.flops import train_flops_per_token as trained
from jscale.mesh import Layout, MeshShape, abstract_mesh, placements
from jscale.models.model import Config, Model

NUMBERS = ("parameters", "a token uses", "FLOPs", "bytes", "per device")


class Row(NamedTuple):
    """One weight: those of all layers that are stacked in it.

    `active` are those of its numbers that a token uses, `flops` those of a token on the way
    forward, `per_device` its bytes on one device, None where no mesh is given.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    parameters: int
    active: float
    flops: float
    bytes: int
    per_device: int | None = None

    @property
    def module(self) -> str:
        """The path of what the weight belongs to."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Summary:
    """Every weight of a network, and what it takes in all.

    Printed, or as the last value of a notebook's cell, it is a table. FLOPs are those of a token on
    the way forward, in a row of `length` tokens, by the convention of `jscale.flops`.
    """

    name: str
    rows: tuple[Row, ...]
    attention: float  # FLOPs of scores, and of sums of values by them
    length: int
    parameters: int
    active: int
    mesh: str | None = None

    @property
    def flops(self) -> float:
        """FLOPs of a token on the way forward; training takes three times as many."""
        return sum(row.flops for row in self.rows) + self.attention

    @property
    def bytes(self) -> int:
        """Bytes of all weights in the dtypes in which they are kept."""
        return sum(row.bytes for row in self.rows)

    @property
    def bytes_per_device(self) -> int | None:
        """Bytes of the weights on one device; None where no mesh is given."""
        if self.mesh is None:
            return None
        return sum(row.per_device or 0 for row in self.rows)

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the table's columns: without those that would tell nothing."""
        names = ("weight", "shape", "axes", *NUMBERS)
        return tuple(name for name in names if name not in self._unsaid)

    @property
    def _unsaid(self) -> set[str]:
        alike = {"a token uses"} if self.active == self.parameters else set()
        return alike | ({"per device"} if self.mesh is None else set())

    def cells(self) -> list[tuple[str, ...]]:
        """The table: weights below their module and its sums, modules of one weight in a line."""
        out = list[tuple[str, ...]]()
        modules: dict[str, list[Row]] = {}
        for row in self.rows:
            modules.setdefault(row.module, []).append(row)
        for module, rows in modules.items():
            if len(rows) == 1:
                out.append(self._line(rows[0].name, rows))
                continue
            out.append(self._line(module, rows))
            out += [self._line(f"  {row.name.rpartition('/')[2]}", [row]) for row in rows]
        if self.attention:
            flops = {"weight": "attention's scores and sums", "FLOPs": f"{self.attention:,.0f}"}
            out.append(tuple(flops.get(name, "") for name in self.header))
        return out

    def _line(self, name: str, rows: list[Row]) -> tuple[str, ...]:
        """The cells of a weight, or the sums of several."""
        one = rows[0] if len(rows) == 1 else None
        cells = {
            "weight": name,
            "shape": "x".join(map(str, one.shape)) if one else "",
            "axes": ", ".join(map(str, one.axes)) if one else "",
            "parameters": f"{sum(row.parameters for row in rows):,}",
            "a token uses": f"{sum(row.active for row in rows):,.0f}",
            "FLOPs": f"{sum(row.flops for row in rows):,.0f}",
            "bytes": readable(sum(row.bytes for row in rows)),
            "per device": readable(sum(row.per_device or 0 for row in rows)),
        }
        return tuple(cells[column] for column in self.header)

    def totals(self) -> list[str]:
        """Sentences: how large it is, and what a token costs."""
        used = f", of which a token uses {self.active:,}" if self.active != self.parameters else ""
        out = [f"{self.parameters:,} parameters{used}; {readable(self.bytes)}"]
        if self.bytes_per_device is not None:
            out.append(f"{readable(self.bytes_per_device)} of them on each device ({self.mesh})")
        share = f" ({self.attention / self.flops:.0%} attention's)" if self.attention else ""
        forward = f"{self.flops:,.0f} FLOPs forward{share} and {3 * self.flops:,.0f} to train"
        return [*out, f"a token in rows of {self.length:,}: {forward}"]

    def __str__(self) -> str:
        table = aligned(self.header, self.cells(), NUMBERS)
        return "\n".join([self.name, "", *table, "", *self.totals()])

    def _repr_html_(self) -> str:
        table = html_table(self.name, self.header, self.cells(), NUMBERS)
        return f"{table}<p>{'<br>'.join(self.totals())}</p>"

    def as_data(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {
            "model": self.name,
            "parameters": self.parameters,
            "active": self.active,
            "bytes": self.bytes,
            "length": self.length,
            "flops": {"forward": self.flops, "attention": self.attention},
            **({"mesh": self.mesh, "bytes_per_device": self.bytes_per_device} if self.mesh else {}),
            "weights": [row._asdict() for row in self.rows],
        }


Placed = Layout | Mesh | AbstractMesh | MeshShape


def summary(model: Model | Config, mesh: Placed | None = None, length: int = 1024) -> Summary:
    """Layers, shapes, logical axes, parameters, FLOPs and bytes of a model, or of its config.

    With a mesh, or a layout that says how weights lie on one, also their bytes on each device.
    `length` is that of the rows in which tokens attend to each other.

    >>> from jscale.models import Llama
    >>> found = summary(Llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64), length=8)
    >>> found.parameters, found.bytes, found.flops
    (22688, 90752, 41984.0)

    Raises:
        ConfigError: it is no model, a row has no token, or the mesh cannot hold the weights.
    """
    if isinstance(model, type) or not isinstance(model, Model | Config):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ConfigError(f"a summary is of a Model or a config that builds one, not of {kind}")
    if length < 1:
        raise ConfigError(f"a row has at least 1 token, not length={length}")
    model = model if isinstance(model, Model) else Model(model)
    layout = None if mesh is None else layout_of(mesh)
    return Summary(
        name=written(model.config) if is_dataclass(model.config) else type(model.config).__name__,
        rows=tuple(rows_of(model, layout)),
        attention=trained(0, layers=1, length=length, width=width(model)) / 3,
        length=length,
        parameters=model.size,
        active=model.active,
        mesh=None if layout is None else shape_of(layout),
    )


def layout_of(mesh: Placed) -> Layout:
    """The layout, or that of the usual rules on a mesh."""
    mesh = abstract_mesh(mesh) if isinstance(mesh, MeshShape) else mesh
    return mesh if isinstance(mesh, Layout) else Layout(mesh)


def shape_of(layout: Layout) -> str:
    """The axes of a mesh that split anything."""
    axes = layout.mesh.shape.items()
    return " ".join(f"{name}={ways}" for name, ways in axes if ways > 1) or "one device"


def rows_of(model: Model, layout: Layout | None) -> Iterator[Row]:
    """Every weight of a model, those of one module after each other."""
    spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)
    axes = jax.tree.leaves(model.axes, is_leaf=spec)
    shares, many = jax.tree.leaves(model.shares), jax.tree.leaves(products(model))
    placed = placements(layout, model.shapes, model.axes) if layout else [None] * len(axes)
    for (name, s), a, share, products_, place in zip(
        named_leaves(model.shapes).items(), axes, shares, many, placed, strict=True
    ):
        each = None if place is None else place.bytes_per_device
        size = s.size * s.dtype.itemsize
        yield Row(name, s.shape, tuple(a), s.size, s.size * share, 2.0 * products_, size, each)
