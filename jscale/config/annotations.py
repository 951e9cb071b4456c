"""What a field's annotation accepts, for data that arrives at run time."""

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from jscale.config.tree import below, is_part, join
from jscale.errors import ConfigError


def hints(kind: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a class or function; one that cannot be resolved reads as `Any`."""
    try:
        return typing.get_type_hints(kind)
    except Exception:  # a name imported for type checkers only
        return dict.fromkeys(getattr(kind, "__annotations__", {}), Any)


def plain(annotation: Any) -> Any:
    """`annotation` without `NewType`, `Annotated`, type aliases and type variables around it."""
    if isinstance(annotation, typing.TypeVar):
        return annotation.__bound__ or Any
    if isinstance(annotation, typing.NewType):
        return plain(annotation.__supertype__)
    if hasattr(annotation, "__metadata__"):
        return plain(annotation.__origin__)
    if type(annotation).__name__ == "TypeAliasType":  # Python 3.12's `type X = ...`
        return plain(annotation.__value__)
    return type(None) if annotation is None else annotation


def members(annotation: Any) -> list[Any]:
    """The alternatives of a union, flattened; any other annotation is its only alternative.

    >>> members(int | None)
    [<class 'int'>, <class 'NoneType'>]
    """
    kind = plain(annotation)
    if get_origin(kind) in (Union, types.UnionType):
        return [leaf for member in get_args(kind) for leaf in members(member)]
    return [kind]


def describe(annotation: Any) -> str:
    """`annotation` in words for an error message.

    >>> describe(int | None), describe(tuple[float, ...]), describe(Literal["auto"])
    ('int or None', 'tuple of float', "'auto'")
    """
    return " or ".join(_describe(member) for member in members(annotation))


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(repr(value) for value in arguments)
    if origin is tuple and arguments and arguments[-1] is Ellipsis:
        return f"tuple of {describe(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(describe(x) for x in arguments)})"
    if is_mapping(kind):
        return f"mapping of {describe(arguments[1])}" if arguments else "mapping"
    if origin is Callable or kind is Callable:
        return "function"
    return getattr(kind, "__name__", str(kind))


def is_mapping(kind: Any) -> bool:
    """Whether a (union-free) annotation is a dictionary or a mapping."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def is_sequence(kind: Any) -> bool:
    """Whether a (union-free) annotation is a tuple or a sequence of things."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Sequence) and not issubclass(origin, str)


def accepts(annotation: Any, value: Any) -> bool:
    """Whether `value` may stand in a field annotated so; what cannot be checked is accepted.

    >>> accepts(float, 3), accepts(int, True), accepts(tuple[int, ...], (1, 2))
    (True, False, True)
    """
    return any(_accepts(member, value) for member in members(annotation))


def _accepts(kind: Any, value: Any) -> bool:
    if kind is Any or kind is object:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(x) and value == x for x in get_args(kind))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if is_mapping(kind):
        return _accepts_mapping(get_args(kind), value)
    if is_sequence(kind):
        return _accepts_items(kind, value)
    if get_origin(kind) is Callable:
        return callable(value)
    return _is_instance(value, get_origin(kind) or kind)


def _accepts_mapping(arguments: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    if len(arguments) != 2:
        return True
    key, entry = arguments
    return all(accepts(key, k) and accepts(entry, v) for k, v in value.items())


def _accepts_items(kind: Any, value: Any) -> bool:
    if not isinstance(value, get_origin(kind) or kind) or isinstance(value, str):
        return False
    kinds = item_kinds(kind, len(value))
    return kinds is not None and all(accepts(k, v) for k, v in zip(kinds, value, strict=True))


def item_kinds(kind: Any, count: int) -> list[Any] | None:
    """The annotation of each of `count` items of a sequence; None if it cannot have so many."""
    arguments = get_args(kind)
    if not arguments:
        return [Any] * count
    if get_origin(kind) is not tuple or arguments[-1] is Ellipsis:
        return [arguments[0]] * count
    exact = [] if arguments == ((),) else list(arguments)
    return exact if len(exact) == count else None


def _is_instance(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that is not runtime-checkable, or a form newer than this file
        return True


def check(value: Any, path: str = "") -> None:
    """Compare every field below `value` with its annotation.

    Raises:
      ConfigError: the first field that holds something else.
    """
    known = hints(type(value)) if is_part(value) else {}
    for name, child in below(value):
        here = join(path, name)
        annotation = known.get(name, Any)
        if not accepts(annotation, child):
            raise ConfigError(f"{here} must be {describe(annotation)}, got {brief(child)}")
        check(child, here)


def brief(value: Any) -> str:
    """`value` and its type, short enough for a sentence.

    >>> brief("four"), brief(None)
    ("str 'four'", 'None')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__} (without parentheses)"
    if is_dataclass(value):
        return f"a {type(value).__name__}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
