"""What of an implementation can be tuned: its rule, what fits, and what a tuner tries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from jscale.errors import ConfigError
from jscale.pallas_kernels.tiles.table import Found, Row, class_of, find

T = TypeVar("T")  # a class of tiles


@dataclass(frozen=True, eq=False)
class Tunable(Generic[T]):
    """The tiles of one implementation. Extents are named tuples of the sizes of a call.

    Attributes:
        operation: its name, as in tables.
        implementation: likewise.
        form: the class of its tiles: numbers by name, or such tiles by name.
        rule: the tiles for a chip and an extent where no table knows better.
        unfit: why tiles are not for that chip and extent, as a clause; None if they are.
        cut: tiles made smaller for an extent that is.
        groups: what a tuner tries, a group after the other, each beside the best so far.
    """

    operation: str
    implementation: str
    form: type[T]
    rule: Callable[[str, Any], Any]
    unfit: Callable[[str, Any, Any], str | None]
    cut: Callable[[Any, Any], Any]
    groups: tuple[Callable[[str, Any, Any], Sequence[Any]], ...]

    def of(self, kind: str, extent: Any) -> T:
        """The tiles for a call on a chip: a table's, else the rule's.

        Raises:
            ConfigError: a table that cannot be read, or whose tiles do not fit.
        """
        found = find(self.operation, self.implementation, kind, extent._asdict())
        tiles = self.rule(kind, extent) if found is None else self.checked(kind, extent, found)
        return self.cut(extent, tiles)

    def checked(self, kind: str, extent: Any, found: Found) -> Any:
        """The tiles of a table's row, which must be such, and fit."""
        where = f"the table of tiles {found.path}, {self.operation} by {self.implementation!r}"
        tiles = build(self.form, found.row.tiles, where)
        why = self.unfit(kind, extent, tiles)
        if why is not None:
            raise ConfigError(f"{where}: {dict(found.row.tiles)} {why}")
        return tiles

    def candidates(self, group: int, kind: str, extent: Any, now: Any) -> list[Any]:
        """What a tuner tries beside `now`: all of a group that fit, and that differ when cut."""
        tried = {self.cut(extent, now): now}
        for tiles in self.groups[group](kind, extent, now):
            if self.unfit(kind, extent, tiles) is None:
                tried.setdefault(self.cut(extent, tiles), tiles)
        return list(tried.values())[1:]

    def row(self, extent: Any, tiles: Any, measured: dict[str, Any]) -> Row:
        """The row of a table that says so."""
        of = class_of(extent._asdict())
        return Row(self.operation, self.implementation, of, plain(tiles), measured)


def plain(tiles: Any) -> dict[str, Any]:
    """Tiles as plain data."""
    names = get_type_hints(type(tiles))
    values = {name: getattr(tiles, name) for name in names}
    return {n: x if isinstance(x, int) else plain(x) for n, x in values.items()}


def build(form: type, data: Any, where: str) -> Any:
    """Tiles from plain data.

    Raises:
        ConfigError: other names than the form's, or what is no number above 0.
    """
    hints = get_type_hints(form)
    if not isinstance(data, dict) or set(data) != set(hints):
        raise ConfigError(f"{where}: tiles must have just the fields {', '.join(hints)}")
    values = {}
    for name, kind in hints.items():
        value = data[name]
        if kind is not int:
            value = build(kind, value, f"{where}, {name}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{where}: {name} must be a whole number above 0, not {value!r}")
        values[name] = value
    return form(**values)
