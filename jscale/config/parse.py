"""Text from a command line becomes a value of the type that a field's annotation asks for.

Nothing is evaluated: the text is parsed to a syntax tree, literals are read off it, and a call
such as `Lion(peak=1e-4)` may only name a type (or a public classmethod of one) from the list of
types that the caller allows.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from jscale.config.annotations import (
    accepts,
    brief,
    describe,
    hints,
    is_mapping,
    is_sequence,
    item_kinds,
    members,
)
from jscale.errors import ConfigError, did_you_mean

Names = Mapping[str, Any]


class Mismatch(Exception):
    """The text does not fit this annotation; another alternative may."""


@dataclass(frozen=True)
class Text:
    """A piece of the command line: the field it is for, what was written, its syntax tree."""

    path: str
    whole: str  # what was written for the outermost field
    source: str  # the piece of it that is for this one
    node: ast.expr | None
    names: Names

    def at(self, node: ast.expr, name: str = "") -> "Text":
        """The piece of this text at `node`, for the field `name` of this one."""
        source = ast.get_source_segment(self.whole, node) or ast.unparse(node)
        path = f"{self.path}.{name}" if name else self.path
        return Text(path, self.whole, source, node, self.names)

    @property
    def word(self) -> str:
        """The text as a bare word or string: quotes, if it has any, taken off."""
        if isinstance(self.node, ast.Constant) and isinstance(self.node.value, str):
            return self.node.value
        return self.source


def parse(path: str, text: str, annotation: Any, names: Names) -> Any:
    """The value written as `text` for the field at `path`, whose annotation is `annotation`.

    The text may call or name the types in `names`, those in the annotation, and those beside them.

    Raises:
      ConfigError: the text is no such value; says the field, what was expected, what was found.
    """
    text = text.strip()
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None  # not Python: a word, a path, an address
    return convert(Text(path, text, text, node, names), annotation)


def convert(text: Text, annotation: Any) -> Any:
    """`text` as a value of the first alternative of `annotation` that it fits."""
    text = replace(text, names={**text.names, **family(members(annotation))})
    alternatives = sorted(members(annotation), key=_rank)
    if isinstance(text.node, ast.Call) and any(map(_constructible, alternatives)):
        return _call(text, text.node, annotation)
    for kind in alternatives:
        try:
            return _convert(text, kind)
        except Mismatch:
            continue
    raise ConfigError(f"{text.path} must be {describe(annotation)}, got {_found(text)}")


def _rank(kind: Any) -> int:
    """Strings last, since they take any text; the word of a literal before all."""
    order = [get_origin(kind) is Literal, kind is type(None), kind is not str]
    return order.index(True) if True in order else len(order)


def _found(text: Text) -> str:
    if text.node is None or isinstance(text.node, ast.Name):
        return repr(text.source)
    try:
        value = ast.literal_eval(text.node)
    except (ValueError, TypeError):
        return repr(text.source)
    whole = isinstance(value, float) and value.is_integer()
    return f"{brief(value)} (write {int(value)})" if whole else brief(value)


def _convert(text: Text, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        return _literal(text, get_args(kind))
    if kind is type(None):
        return _choice(text.source, {"None": None, "none": None, "null": None})
    if kind is bool:
        return _choice(text.source, {"true": True, "True": True, "false": False, "False": False})
    if kind is int or kind is float:
        return _number(text, kind)
    if kind is str:
        return _string(text)
    if kind is Any or kind is object:
        return _anything(text)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice(text.word, {str(m.value): m for m in kind} | {m.name: m for m in kind})
    if is_mapping(kind):
        return _mapping(text, get_args(kind))
    if is_sequence(kind):
        return _items(text, kind)
    return _named(text, kind)


def _string(text: Text) -> str:
    """Any text at all; but inside a tuple or call a number stays a number."""
    inner = text.source != text.whole
    if inner and isinstance(text.node, ast.Constant) and not isinstance(text.node.value, str):
        raise Mismatch
    return text.word


def _literal(text: Text, choices: Iterable[Any]) -> Any:
    for choice in choices:
        if text.word == choice if isinstance(choice, str) else text.source == repr(choice):
            return choice
    raise Mismatch


def _choice(word: str, choices: Mapping[str, Any]) -> Any:
    if word not in choices:
        raise Mismatch
    return choices[word]


def _number(text: Text, kind: type[int] | type[float]) -> int | float:
    try:
        value = ast.literal_eval(text.node) if text.node else None
    except (ValueError, TypeError):
        value = None
    if kind is float and text.source.lstrip("+-") in ("inf", "nan"):
        value = float(text.source)
    if not isinstance(value, int | float) or not accepts(kind, value):
        raise Mismatch
    try:
        return kind(value)
    except OverflowError:
        raise Mismatch from None


def _anything(text: Text) -> Any:
    if isinstance(text.node, ast.Call | ast.Name) and _head(text.node) in text.names:
        return _named(text, Any)
    try:
        value = ast.literal_eval(text.node) if text.node else text.source
    except (ValueError, TypeError):
        value = text.source
    return tuple(value) if isinstance(value, list) else value


def _mapping(text: Text, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(text.node, ast.Dict) or None in text.node.keys:
        raise Mismatch
    key_kind, kind = arguments if len(arguments) == 2 else (Any, Any)
    result = {}
    for key, value in zip(text.node.keys, text.node.values, strict=True):
        assert key is not None
        name = convert(text.at(key), key_kind)
        if name in result:
            raise ConfigError(f"{text.path} has the entry {name!r} twice")
        result[name] = convert(text.at(value, str(name)), kind)
    return result


def _items(text: Text, kind: Any) -> tuple[Any, ...]:
    if not isinstance(text.node, ast.Tuple | ast.List):
        raise Mismatch
    kinds = item_kinds(kind, len(text.node.elts))
    if kinds is None:
        raise Mismatch
    pairs = zip(text.node.elts, kinds, strict=True)
    return tuple(convert(text.at(x, str(i)), k) for i, (x, k) in enumerate(pairs))


def _named(text: Text, kind: Any) -> Any:
    """A call of an allowed type, an allowed type without arguments, or an allowed function."""
    if isinstance(text.node, ast.Call):
        return _call(text, text.node, kind)
    found = text.names.get(text.word)
    if found is None:
        raise Mismatch
    value = found if inspect.isfunction(found) else construct(text.path, found, {})
    if not accepts(kind, value):
        raise Mismatch
    return value


def _constructible(kind: Any) -> bool:
    """Whether a call could give a value of `kind`: it is no plain data."""
    plain = (int, float, str, bool, type(None))
    return kind not in plain and get_origin(kind) is not Literal and not is_mapping(kind)


def _head(node: ast.expr) -> str:
    """`Llama` of `Llama(...)`, of `Llama.of_depth(...)` and of `Llama`."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _call(text: Text, node: ast.Call, annotation: Any) -> Any:
    allowed = {name: x for name, x in text.names.items() if isinstance(x, type)}
    kind = allowed.get(_head(node.func))
    if kind is None:
        called = ast.unparse(node.func)
        fit = [name for name, kind in allowed.items() if _may_be(kind, annotation)]
        hint = did_you_mean(_head(node.func) or called, fit)
        raise ConfigError(f"{text.path} cannot be {called}(...): {hint}")
    maker = _maker(text, node.func, kind)
    value = construct(text.path, maker, _arguments(text, node, maker))
    if not accepts(annotation, value):
        raise ConfigError(f"{text.path} must be {describe(annotation)}, got {brief(value)}")
    return value


def _may_be(kind: type, annotation: Any) -> bool:
    try:
        return any(issubclass(kind, get_origin(member) or member) for member in members(annotation))
    except TypeError:  # no class: any type may be it
        return True


def _maker(text: Text, func: ast.expr, kind: type) -> Callable[..., Any]:
    """What `func` calls: the type itself or one of its public classmethods."""
    if isinstance(func, ast.Name):
        return kind
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        methods = {name for name in dir(kind) if _is_maker(kind, name)}
        if func.attr in methods:
            return getattr(kind, func.attr)
        hint = did_you_mean(func.attr, [f"{kind.__name__}.{name}" for name in methods])
        raise ConfigError(f"{text.path}: {kind.__name__} has no maker {func.attr!r}; {hint}")
    raise ConfigError(f"{text.path} cannot be {text.source}: call a type, as in {kind.__name__}()")


def _is_maker(kind: type, name: str) -> bool:
    found = inspect.getattr_static(kind, name)
    return isinstance(found, classmethod) and not name.startswith("_")


def _arguments(text: Text, node: ast.Call, maker: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a call, each converted to the annotation of its parameter."""
    known = parameters(maker)
    called = ast.unparse(node.func)
    if len(node.args) > len(known):
        raise ConfigError(f"{text.path}: {called} takes {len(known)} arguments, not {text.source}")
    given = list(zip(known, node.args, strict=False))
    result: dict[str, Any] = {}
    for name, value in [*given, *((word.arg, word.value) for word in node.keywords)]:
        if name is None or isinstance(value, ast.Starred):
            raise ConfigError(f"{text.path}: write the arguments of {called} out, without * or **")
        if name in result:
            raise ConfigError(f"{text.path}: {called} is given {name} twice")
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{text.path}: {called} has no argument {name!r}; {hint}")
        result[name] = convert(text.at(value, name), known[name])
    return result


def parameters(maker: Callable[..., Any]) -> dict[str, Any]:
    """The parameters that may be given to a type or classmethod, with their annotations."""
    known = hints(getattr(maker, "__func__", maker))
    if isinstance(maker, type) and is_dataclass(maker):
        return {x.name: known.get(x.name, Any) for x in fields(maker) if x.init}
    taken = inspect.signature(maker).parameters.values()
    found = {x.name: known.get(x.name, Any) for x in taken if not _is_star(x)}
    if any(x.kind is x.VAR_KEYWORD for x in taken):  # `**changes` of fields
        return found | {k: v for k, v in parameters(maker.__self__).items() if k not in found}
    return found


def _is_star(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def construct(path: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """`maker(**arguments)`, its complaints prefixed with the field's path."""
    name = getattr(maker, "__qualname__", str(maker))
    missing = [
        parameter.name
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.default is parameter.empty
        and not _is_star(parameter)
        and parameter.name not in arguments
    ]
    if missing:
        raise ConfigError(f"{path}: {name} needs {' and '.join(missing)}")
    try:
        return maker(**arguments)
    except Exception as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def family(things: Iterable[Any]) -> dict[str, Any]:
    """The public names beside some classes (or functions), and these classes themselves.

    Beside a dataclass or protocol are the dataclasses that its module defines, and those that the
    package around that module hands out as its own; beside a function, its module's functions.
    """
    found: dict[str, Any] = {}
    for thing in things:
        if not (isinstance(thing, type) or inspect.isfunction(thing)):
            continue
        package = thing.__module__.rpartition(".")[0]
        for home in [thing.__module__, *([package] if "." in package else [])]:
            names = vars(sys.modules[home]) if home in sys.modules else {}
            own = {name: x for name, x in names.items() if _is_beside(thing, x, home)}
            found = {**own, **found}
        if is_dataclass(thing):
            found[thing.__name__] = thing
    return found


def _is_beside(thing: Any, other: Any, home: str) -> bool:
    """Whether `other` is public, of the kind that could replace `thing`, and defined in `home`."""
    if inspect.isfunction(thing):
        usable = inspect.isfunction(other)
    else:
        usable = isinstance(other, type) and is_dataclass(other)
    name, defined = getattr(other, "__name__", "_"), getattr(other, "__module__", None) or ""
    return usable and not name.startswith("_") and f"{defined}.".startswith(f"{home}.")
