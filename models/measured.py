"""How long a layer of experts took by each way to dispatch, as `jscale moe bench` has measured it.

The times are rows of the tables of tiles: a file for each kind of chip, and a row for a class of
layers, whose sizes are rounded up to powers of two. What was measured on another kind of chip, on
another processor, or over a network is not of this machine.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh.layout import current
from jscale.pallas_kernels.device import Device, device
from jscale.pallas_kernels.tiles.processor import processor
from jscale.pallas_kernels.tiles.table import Found, Row, class_of, find

OPERATION, BY = "experts", "dispatch"


@runtime_checkable
class Spread(Protocol):
    """A layer on a mesh, as `dispatching.Spread` is."""

    @property
    def axes(self) -> tuple[str, ...]: ...

    @property
    def ways(self) -> tuple[int, ...]: ...

    @property
    def tokens(self) -> int: ...

    @property
    def choices(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def weights(self) -> int: ...


class Class(NamedTuple):
    """Layers that take the ways alike: what a row is for."""

    ways: str  # how many ways each mesh axis splits the experts: 8, 2x4
    tokens: int  # of one device
    choices: int  # experts that a token uses
    dim: int  # numbers of a token
    weights: int  # numbers of all experts
    room: str  # rows for which a device has room, in even shares; any
    hosts: int  # machines on which the devices are
    machine: str  # the processor where it is the device; nothing elsewhere, the file says it

    @staticmethod
    def of(spread: Spread, room: float | None, where: Device, hosts: int = 1) -> "Class":
        """That of a layer on a device."""
        return Class(
            "x".join(map(str, spread.ways)),
            *(spread.tokens, spread.choices, spread.dim, spread.weights),
            "any" if room is None else f"{room:g}",
            hosts,
            processor() if where.platform == "cpu" else "",
        )

    def row(self, seconds: Mapping[str, float], measured: Mapping[str, Any]) -> Row:
        """The row of a table; where the tiles of others stand are the seconds by way."""
        return Row(OPERATION, BY, class_of(self._asdict()), seconds, measured)


def measured(
    spread: Spread, room: float | None, known: Collection[str]
) -> Mapping[str, float] | None:
    """Seconds of a step of a layer under the current layout by way; None where nobody measured.

    Raises:
        ConfigError: a table that cannot be read, or has no times of ways that are `known`.
    """
    where = device()
    mine = Class.of(spread, room, where, _hosts(spread.axes))
    found = find(OPERATION, BY, where.kind, mine._asdict())
    if found is None:
        return None
    _check(found, known)
    return {way: float(seconds) for way, seconds in found.row.tiles.items()}


def _check(found: Found, known: Collection[str]) -> None:
    """Raises ConfigError unless a row has times of known ways."""
    where, times = f"a row for {OPERATION} in the table {found.path}", found.row.tiles
    if not times:
        raise ConfigError(f"{where} has no times: measure again with jscale moe bench")
    for way, seconds in times.items():
        if way not in known:
            raise ConfigError(f"{where} names a way {way!r}; {did_you_mean(way, known)}")
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0 < seconds < math.inf:
            raise ConfigError(f"{where}: {way!r} must take a number of seconds, not {seconds!r}")


def _hosts(axes: tuple[str, ...]) -> int:
    """On how many machines those devices are that share the experts; 1 of devices supposed."""
    layout = current()
    if layout is None or not isinstance(layout.mesh, jax.sharding.Mesh):
        return 1
    names = layout.mesh.axis_names
    some = layout.mesh.devices[tuple(slice(None) if name in axes else 0 for name in names)]
    return len({d.process_index for d in some.flat})
