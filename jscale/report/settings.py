"""A recipe, as data from a file, in lines to read; and where two or more of them differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from jscale.config.diff import ABSENT, diff
from jscale.report.parts import short_name, text_of

Settings = dict[str, str]
DEPTH = 64  # of settings within settings; recipes have fewer


def settings(recipe: Any) -> Settings:
    """Every setting by its dotted path, as text. A part is a line with its type."""
    out: Settings = {}
    _settings(recipe, "", out, 0)
    return out


def _settings(value: Any, path: str, out: Settings, depth: int) -> None:
    if isinstance(value, Mapping) and value and depth < DEPTH:
        if "type" in value and path:
            out[path] = text_of(value)
        for name, child in value.items():
            if name != "type":
                _settings(child, f"{path}.{name}" if path else str(name), out, depth + 1)
    elif isinstance(value, list) and any(isinstance(x, Mapping) for x in value) and depth < DEPTH:
        for i, child in enumerate(value):
            _settings(child, f"{path}.{i}" if path else str(i), out, depth + 1)
    else:
        out[path] = text_of(value)


def changes(base: Any, recipe: Any) -> list[tuple[str, str, str]]:
    """Path, value in the base, value here, of all in which they differ."""
    found = [(d.path, said(d.left), said(d.right)) for d in diff(tuples(base), tuples(recipe))]
    return [(path.removesuffix(".type") or "recipe", left, right) for path, left, right in found]


def tuples(value: Any) -> Any:
    """JSON with its lists as tuples, which is what `diff` compares item by item."""
    if isinstance(value, Mapping):
        return {str(name): tuples(child) for name, child in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def said(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if isinstance(value, str) and ":" in value:
        return short_name(value)
    return text_of(value)


def differing(recipes: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """Paths at which not all recipes have the same, and what each of them has there."""
    found = [settings(recipe) for recipe in recipes]
    paths = dict.fromkeys(path for each in found for path in each)
    rows = [(path, [each.get(path, "absent") for each in found]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]
