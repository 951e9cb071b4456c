"""Every value of a recipe, with where it came from."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from jscale.config.diff import face, same
from jscale.config.load import Loaded
from jscale.config.override import override
from jscale.config.source import default_of, note
from jscale.config.tree import is_leaf, is_part, nodes


@dataclass(frozen=True)
class Setting:
    """A dotted path, the value there (of a part, its type), where it was set, what it is for."""

    path: str
    value: Any
    origin: str
    note: str = ""


def why(
    loaded: Loaded, overrides: Mapping[str, str] | None = None, types: Iterable[type] = ()
) -> list[Setting]:
    """Everything in the recipe after `overrides`, parts before their fields.

    Raises:
      ConfigError: an override does not fit.
    """
    changes = overrides or {}
    after = override(loaded.value, changes, types)
    before = dict(nodes(loaded.value))
    found = []
    for path, value in nodes(after):
        by = _override_of(path, changes)
        if by is not None:
            origin = _from_override(path, by, changes[by], after)
        elif path in before and _agree(before[path], value):
            origin = loaded.origins[path]
        else:
            origin = _from_around(path, value, changes, after)
        found.append(Setting(path, face(value), origin))
    return found


def _override_of(path: str, changes: Mapping[str, str]) -> str | None:
    """The override that set `path`: the longest that names it or something around it."""
    found = [other for other in changes if path == other or path.startswith(f"{other}.")]
    return max(found, key=len, default=None)


def _from_around(path: str, value: Any, changes: Mapping[str, str], after: Any) -> str:
    """The origin of what no override names, but what one of them made or changed."""
    inside = [f"{x}={y}" for x, y in changes.items() if x.startswith(f"{path}.")]
    if inside:
        return f"command line: {' '.join(inside)}"
    parent, _, name = path.rpartition(".")
    part = at(after, parent)
    if is_part(part) and value is type(part).__dataclass_fields__[name].default:
        return default_of(type(part), name)
    return f"computed from {' '.join(f'{x}={y}' for x, y in changes.items())}"


def _agree(a: Any, b: Any) -> bool:
    return same(a, b) if is_leaf(a) and is_leaf(b) else type(a) is type(b)


def _from_override(path: str, by: str, text: str, after: Any) -> str:
    """`command line: ...`, or the default of a type that the override names without the field."""
    said = f"command line: {by}={text}"
    if path == by:
        return said
    try:
        node: ast.expr | None = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return said
    part = at(after, by)
    for name in path[len(by) + 1 :].split("."):
        if not is_part(part) or not isinstance(node, ast.Call | ast.Name):
            return said
        func = node.func if isinstance(node, ast.Call) else node
        if not isinstance(func, ast.Name):  # a classmethod decides
            return said
        given = _given(node, part)
        if name not in given:
            return default_of(type(part), name)
        node, part = given[name], getattr(part, name)
    return said


def _given(node: ast.Call | ast.Name, part: Any) -> dict[str, ast.expr]:
    if isinstance(node, ast.Name):
        return {}
    names = [field.name for field in fields(part) if field.init]
    words = {word.arg: word.value for word in node.keywords if word.arg}
    return {**dict(zip(names, node.args, strict=False)), **words}


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path of `value`, which must exist."""
    return dict(nodes(value))[path] if path else value


def explained(value: Any, settings: Iterable[Setting]) -> list[Setting]:
    """The settings of `value`, each with what the class of its part says of the field."""
    parts = {"": value, **dict(nodes(value))}
    found = []
    for setting in settings:
        owner, _, name = setting.path.rpartition(".")
        text = note(type(parts[owner]), name) if is_part(parts.get(owner)) else ""
        found.append(replace(setting, note=text))
    return found
