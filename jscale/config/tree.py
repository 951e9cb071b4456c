"""A value as a tree of dotted paths: fields of dataclasses, entries of mappings, items."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent


def is_part(value: Any) -> bool:
    """Whether `value` is an instance of a dataclass."""
    return is_dataclass(value) and not isinstance(value, type)


def below(value: Any) -> list[tuple[str, Any]]:
    """The named values directly below `value`: fields, entries or items.

    >>> below({"code": 0.1, "web": 0.9}), below((0.9, 0.95))
    ([('code', 0.1), ('web', 0.9)], [('0', 0.9), ('1', 0.95)])
    """
    if is_part(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return [(str(key), entry) for key, entry in value.items()]
    if isinstance(value, tuple):
        return [(str(index), item) for index, item in enumerate(value)]
    return []


def is_leaf(value: Any) -> bool:
    """Whether `value` is shown whole: plain data, or a tuple of plain data."""
    if isinstance(value, tuple):
        return not any(is_part(item) or isinstance(item, Mapping) for item in value)
    return not below(value)


def join(path: str, name: str) -> str:
    """`path.name`, or `name` at the root."""
    return f"{path}.{name}" if path else name


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path below `value` with what stands there, parents first; `value` itself is left out.

    >>> list(nodes({"mix": {"code": 1}}))
    [('mix', {'code': 1}), ('mix.code', 1)]
    """
    for name, child in () if is_leaf(value) else below(value):
        here = join(path, name)
        yield here, child
        yield from nodes(child, here)


def shown(path: Path) -> str:
    """`path` as a person wants to read it: relative to here, or to the installed package."""
    real = path.resolve()
    here = Path.cwd().resolve()
    if real.is_relative_to(here):
        return str(real.relative_to(here))
    if path.is_relative_to(PACKAGE):
        return str(path.relative_to(PACKAGE.parent))
    return str(path)
