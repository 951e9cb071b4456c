"""`dotted.field=value` on a command line, applied to a frozen value, checked by type."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_args

from jscale.config.annotations import brief, hints, is_mapping, is_sequence, item_kinds, members
from jscale.config.parse import Names, construct, family, parameters, parse
from jscale.config.suggest import suggest
from jscale.config.tree import is_part, join, nodes
from jscale.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Change:
    """One override: the whole path and text as given, and the part of the path still to walk."""

    path: str
    text: str
    rest: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}={self.text}"

    def below(self, steps: int = 1) -> "Change":
        """The same change seen from `steps` names further down."""
        return Change(self.path, self.text, self.rest[steps:])


@dataclass(frozen=True)
class Place:
    """Where in the tree we are: the path, the annotation there, and the modules of its family."""

    root: Any
    path: str
    annotation: Any
    owner: type | None
    types: tuple[type, ...]

    def at(self, name: str, annotation: Any, owner: type | None) -> "Place":
        """The place `name` below this one."""
        return Place(self.root, join(self.path, name), annotation, owner, self.types)

    def names(self, value: Any) -> Names:
        """What an override here may name besides the family of its annotation."""
        given = {kind.__name__: kind for kind in self.types}
        present = type(value) if is_part(value) else value
        return given | family([self.owner]) | family([present])


def parse_overrides(texts: Sequence[str]) -> dict[str, str]:
    """The overrides of a command line, in order.

    >>> parse_overrides(["model.layers=4", "name=a=b"])
    {'model.layers': '4', 'name': 'a=b'}

    Raises:
      ConfigError: one has no `=`, or a field is given twice.
    """
    changes: dict[str, str] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"{text!r} is not an override: write field=value")
        if path in changes:
            raise ConfigError(f"{path} is set twice: {path}={changes[path]} and {text}")
        changes[path] = value
    return changes


def override(value: Any, changes: Mapping[str, str], types: Iterable[type] = ()) -> Any:
    """`value` with the fields at dotted paths replaced, checked against their annotations.

    A part is switched by naming its type, as in `optimizer=Lion(peak=1e-4)`: allowed are the types
    in the field's annotation, those defined beside them or beside the present part, and `types`.
    A field of an absent part (`mesh.fsdp=2` where mesh is "auto") makes that part, if the
    annotation names one type for it.
    All changes of one part are made at once, so its own checks see them together.

    Raises:
      ConfigError: an unknown field, a value of the wrong type, a value its part refuses, or a
        change that a later one would overwrite.
    """
    todo = [Change(path, text, tuple(path.split("."))) for path, text in changes.items()]
    for index, change in enumerate(todo):
        for earlier in todo[:index]:
            if earlier.rest[: len(change.rest)] == change.rest:
                raise ConfigError(f"{change} would overwrite {earlier}: give {change} first")
    place = Place(value, "", type(value), None, tuple(types))
    return _apply(value, todo, place) if todo else value


def _apply(value: Any, changes: Sequence[Change], place: Place) -> Any:
    """`value` after `changes`, the whole replacement (there is at most one) first."""
    for change in changes:
        if not change.rest:
            value = parse(place.path, change.text, place.annotation, place.names(value))
    deeper = [change for change in changes if change.rest]
    if not deeper:
        return value
    if is_part(value):
        return _apply_fields(value, deeper, place)
    if isinstance(value, Mapping):
        return _apply_entries(value, deeper, place)
    if isinstance(value, tuple):
        return _apply_items(value, deeper, place)
    return _apply_absent(value, deeper, place)


def _apply_absent(value: Any, changes: Sequence[Change], place: Place) -> Any:
    """A new part in place of `value` (None, a word), if the annotation leaves one type for it."""
    kinds = [kind for kind in members(place.annotation) if isinstance(kind, type)]
    kinds = [kind for kind in kinds if is_dataclass(kind)]
    if len(kinds) != 1:
        hint = f"; give {place.path}=... first" if value is None else ""
        said = f"{place.path} is {brief(value)}, which has no fields{hint}"
        raise ConfigError(f"override {changes[0]}: {said}")
    known = parameters(kinds[0])
    names = place.names(kinds[0])
    given = {
        change.rest[0]: parse(change.path, change.text, known[change.rest[0]], names)
        for change in changes
        if len(change.rest) == 1 and change.rest[0] in known
    }
    part = construct(place.path, kinds[0], given)
    return _apply(part, [change for change in changes if change.rest[0] not in given], place)


def _grouped(changes: Sequence[Change]) -> dict[str, list[Change]]:
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.rest[0], []).append(change.below())
    return groups


def _apply_fields(value: Any, changes: Sequence[Change], place: Place) -> Any:
    kind = type(value)
    known = {field.name: field for field in fields(value)}
    annotations = hints(kind)
    new = {}
    for name, group in _grouped(changes).items():
        if name not in known:
            own = [join(place.path, field) for field in known]  # a new part is not in the root yet
            paths = dict.fromkeys([*own, *(path for path, _ in nodes(place.root))])
            hint = suggest(name, paths, place.path)
            said = f"{kind.__name__} has no field {name!r}; {hint}"
            raise ConfigError(f"override {group[0]}: {said}")
        if not known[name].init:
            raise ConfigError(f"override {group[0]}: {kind.__name__} computes {name} itself")
        below = place.at(name, annotations.get(name, Any), kind)
        new[name] = _apply(getattr(value, name), group, below)
    try:
        return replace(value, **new)
    except Exception as error:
        where = f"{place.path}: " if place.path else ""
        said = ", ".join(str(change) for change in changes)
        raise ConfigError(f"{where}{error} (after {said})") from error


def _apply_entries(value: Mapping[Any, Any], changes: Sequence[Change], place: Place) -> Any:
    kinds = [get_args(kind) for kind in members(place.annotation) if is_mapping(kind)]
    kind = next((pair[1] for pair in kinds if len(pair) == 2), Any)
    keys = {str(key): key for key in value}
    groups: dict[str, list[Change]] = {}
    for change in changes:
        joined = (".".join(change.rest[:n]) for n in range(len(change.rest), 0, -1))
        name = next((name for name in joined if name in keys), None)
        if name is None:
            full = [join(place.path, key) for key in keys]
            hint = did_you_mean(join(place.path, change.rest[0]), full)
            raise ConfigError(f"override {change}: {place.path} has no such entry; {hint}")
        groups.setdefault(name, []).append(change.below(name.count(".") + 1))
    new = {
        keys[name]: _apply(value[keys[name]], group, place.at(name, kind, place.owner))
        for name, group in groups.items()
    }
    return {**value, **new}


def _apply_items(value: tuple[Any, ...], changes: Sequence[Change], place: Place) -> Any:
    sequences = [kind for kind in members(place.annotation) if is_sequence(kind)]
    kinds = item_kinds(sequences[0], len(value)) if sequences else None
    items = list(value)
    for name, group in _grouped(changes).items():
        if not (name.isascii() and name.isdigit() and int(name) < len(items)):
            size = f"{len(items)} items, counted from 0"
            raise ConfigError(f"override {group[0]}: {place.path} has {size}, and no {name!r}")
        index = int(name)
        below = place.at(name, kinds[index] if kinds else Any, place.owner)
        items[index] = _apply(items[index], group, below)
    return tuple(items)
