"""A value as data and back, without executing anything but jscale and what the caller allows.

A dataclass is written as `{"type": "module:Name", field: value, ...}` and a tuple as a list;
functions and members of enumerations are written by name, and only if they stand at the top of
their module. `from_data` makes dataclasses of jscale's own modules, and of modules that the caller
has already imported and passes. Nothing else in the data can name code. A field that a type has got
since the data were written takes its default, and that is told.
"""

import hashlib
import importlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from jscale.config.annotations import accepts, brief, describe, hints
from jscale.config.tree import is_part, join
from jscale.errors import ConfigError, did_you_mean

DEPTH = 64
SIZE = 200_000  # values in one recipe: the largest are a few hundred
BYTES = 16 * 2**20
MARKS = frozenset({"type", "function", "enum", "float", "dict"})
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")


def to_data(value: Any) -> Any:
    """`value` as what JSON can hold.

    Raises:
      ConfigError: something in it is no data (a lambda, an array, an open file, a list), by path.
    """
    return _encode(value, "", 0)


def _encode(value: Any, path: str, depth: int) -> Any:
    if depth > DEPTH:
        raise ConfigError(f"{path or 'the value'} is nested deeper than {DEPTH} levels")
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, Enum):
        return {"enum": _reference(type(value), path), "member": value.name}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if type(value) is tuple:
        return [_encode(x, join(path, str(i)), depth + 1) for i, x in enumerate(value)]
    if isinstance(value, Mapping):
        return _encode_mapping(value, path, depth)
    if is_part(value):
        return _encode_part(value, path, depth)
    if isinstance(value, FunctionType):
        return {"function": _reference(value, path)}
    hint = "; write a tuple" if isinstance(value, list | set) else ""
    raise ConfigError(
        f"{path or 'the value'} is {brief(value)}, which is no data for a recipe{hint}"
    )


def _encode_mapping(value: Mapping[Any, Any], path: str, depth: int) -> Any:
    pairs = [
        (_encode(key, path, depth + 1), _encode(entry, join(path, str(key)), depth + 1))
        for key, entry in value.items()
    ]
    if all(type(key) is str and key not in MARKS for key in value):
        return dict(pairs)
    return {"dict": [list(pair) for pair in pairs]}


def _encode_part(value: Any, path: str, depth: int) -> dict[str, Any]:
    kind = type(value)
    if not _is_frozen(kind):
        raise ConfigError(f"{path or 'the value'} is a {kind.__name__}, which is not frozen")
    names = [field.name for field in fields(value) if field.init]
    if not MARKS.isdisjoint(names):
        taken = ", ".join(sorted(MARKS.intersection(names)))
        raise ConfigError(f"{kind.__name__} has a field named {taken}: recipes keep that name")
    encoded = {x: _encode(getattr(value, x), join(path, x), depth + 1) for x in names}
    return {"type": _reference(kind, path), **encoded}


def _is_frozen(kind: type) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _reference(thing: Any, path: str) -> str:
    """`module:Name` of a class or function that stands at the top of its module."""
    module, name = thing.__module__, thing.__qualname__
    found = vars(sys.modules.get(module, object)).get(name)
    if found is not thing or name.startswith("_"):
        raise ConfigError(
            f"{path or 'the value'} is {module}.{name}, which is no public name of its module"
        )
    return f"{module}:{name}"


class Filled(NamedTuple):
    """A field that the data do not have, and the default that it was given."""

    path: str
    owner: type
    value: Any

    def __str__(self) -> str:
        return f"{self.path}={self.value!r:.60}"


def from_data(
    data: Any, allow: Iterable[ModuleType] = (), filled: list[Filled] | None = None
) -> Any:
    """The value that `to_data` wrote.

    Types come from jscale's own modules and from the modules in `allow`; fields must be those of
    the type as it is now, and hold what their annotations say. A field that is missing and has a
    default is given it and added to `filled`.

    Raises:
      ConfigError: the data is not of that form, or is from another version of a type.
    """
    reader = _Reader({module.__name__: module for module in allow})
    value = reader.read(data, "", 0)
    if filled is not None:
        filled += reader.filled
    return value


class _Reader:
    """One reading: which modules are allowed, how many values have been read, what was missing."""

    def __init__(self, allowed: Mapping[str, ModuleType]) -> None:
        self.allowed = allowed
        self.count = 0
        self.filled: list[Filled] = []

    def read(self, data: Any, path: str, depth: int) -> Any:
        self.count += 1
        where = path or "the value"
        if depth > DEPTH or self.count > SIZE:
            raise ConfigError(f"{where} is nested too deeply or holds too much to be a recipe")
        if data is None or type(data) in (bool, int, str):
            return data
        if type(data) is float and math.isfinite(data):
            return data
        if isinstance(data, list):
            return tuple(self.read(x, join(path, str(i)), depth + 1) for i, x in enumerate(data))
        if not isinstance(data, dict) or not all(type(key) is str for key in data):
            raise ConfigError(f"{where} is {brief(data)}, which JSON cannot hold")
        mark = next((name for name in data if name in MARKS), None)
        if mark == "type":
            return self.read_part(data, path, depth)
        if mark is None:
            return {k: self.read(v, join(path, k), depth + 1) for k, v in data.items()}
        return self.read_marked(mark, data, path, depth)

    def read_marked(self, mark: str, data: dict[str, Any], path: str, depth: int) -> Any:
        where, content = path or "the value", data[mark]
        if data.keys() != ({mark, "member"} if mark == "enum" else {mark}):
            raise ConfigError(f"{where} mixes {mark!r} with {', '.join(sorted(data))}")
        if mark == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if mark == "dict" and isinstance(content, list):
            return self.read_pairs(content, path, depth)
        if mark == "function":
            return self.find(content, path, FunctionType)
        if mark == "enum":
            kind, member = self.find(content, path, type), data["member"]
            if issubclass(kind, Enum) and isinstance(member, str) and member in kind.__members__:
                return kind[member]
        raise ConfigError(f"{where} is no {mark}: {brief(content)}")

    def read_pairs(self, pairs: list[Any], path: str, depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ConfigError(f"{path or 'the value'} holds {brief(pair)} instead of an entry")
            key = self.read(pair[0], path, depth + 1)
            plain = isinstance(key, int | float | str | tuple | Enum | None)
            if not plain or _is_unhashable(key) or key in result:
                raise ConfigError(f"{path or 'the value'} has a wrong or double key {brief(key)}")
            result[key] = self.read(pair[1], join(path, str(key)), depth + 1)
        return result

    def read_part(self, data: dict[str, Any], path: str, depth: int) -> Any:
        kind = self.find(data["type"], path, type)
        where = path or kind.__name__
        if not _is_frozen(kind):
            raise ConfigError(f"{where}: {data['type']} is no frozen dataclass")
        names = [name for name in data if name != "type"]
        for field in _missing_fields(kind, names, path):
            self.filled.append(Filled(join(path, field.name), kind, default(field)))
        known = hints(kind)
        values = {}
        for name in names:
            here = join(path, name)
            values[name] = self.read(data[name], here, depth + 1)
            if not accepts(known.get(name, Any), values[name]):
                expected = describe(known[name])
                raise ConfigError(f"{here} must be {expected}, got {brief(values[name])}")
        try:
            return kind(**values)
        except Exception as error:
            raise ConfigError(f"{where}: {error}") from error

    def find(self, reference: Any, path: str, sort: type) -> Any:
        """The class or function called `module:Name`, if it may be used and is defined there."""
        where = path or "the value"
        valid = isinstance(reference, str) and len(reference) < 300 and NAME.fullmatch(reference)
        if not valid:
            raise ConfigError(f"{where} names no type: {brief(reference)}")
        home, _, name = reference.partition(":")
        module = self.allowed.get(home) or _own_module(home, where)
        found = vars(module).get(name)
        here = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        if not isinstance(found, sort) or here != (home, name) or name.startswith("_"):
            own = [k for k, v in vars(module).items() if getattr(v, "__module__", 0) == home]
            hint = did_you_mean(name, [k for k in own if not k.startswith("_")])
            raise ConfigError(f"{where}: there is no {name} in {home}; {hint}")
        return found


def _is_unhashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return True
    return False


def _own_module(home: str, where: str) -> ModuleType:
    """A module of jscale, imported if need be; any other is refused."""
    if not home.startswith("jscale.") or "__" in home:
        raise ConfigError(
            f"{where} is of a type in the module {home!r}, which is not jscale's: "
            "import that module yourself and allow it (on the command line: --import FILE)"
        )
    try:
        return importlib.import_module(home)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import {home}: {error}") from error


def default(field: Field[Any]) -> Any:
    """The default of a field, made anew where a function makes it; `MISSING` where it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _missing_fields(kind: type, given: Iterable[str], path: str) -> list[Field[Any]]:
    """The fields that are not given and have a default; refuses others that `kind` lacks or needs.

    An unknown field may have meant anything, so where there is one nothing is filled in.
    """
    known = {field.name: field for field in fields(kind) if field.init}
    unknown = sorted(set(given) - known.keys())
    missing = [known[name] for name in known if name not in set(given)]
    said = [f"has no field {name} ({did_you_mean(name, known)})" for name in unknown]
    for field in missing:
        if default(field) is MISSING:
            said.append(f"also needs {field.name}")
        elif unknown:
            said.append(f"also needs {field.name} (its default is {default(field)!r})")
    if said:
        where = f"{path} ({kind.__name__})" if path else kind.__name__
        raise ConfigError(f"{where} was written by another version: it {' and '.join(said)}")
    return missing


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits of `value`: equal values agree, on any machine.

    >>> fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2, "a": 1.0})
    True
    """
    text = json.dumps(_canonical(to_data(value)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(data: Any) -> Any:
    """Whole floats as integers, and entries of mappings with other keys in one order."""
    if isinstance(data, float) and data.is_integer():
        return int(data)
    if isinstance(data, list):
        return [_canonical(item) for item in data]
    if isinstance(data, dict):
        clean = {key: _canonical(item) for key, item in data.items()}
        return clean | {"dict": sorted(clean["dict"], key=repr)} if "dict" in clean else clean
    return data


def write(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON that a person can read."""
    path.write_text(json.dumps(to_data(value), indent=2) + "\n", encoding="utf-8")


def read(path: Path, allow: Iterable[ModuleType] = (), filled: list[Filled] | None = None) -> Any:
    """The value in a file that `write` wrote; `filled` is added to as in `from_data`.

    Raises:
      ConfigError: the file is missing, too large, no JSON, or no such value.
    """
    try:
        if path.stat().st_size > BYTES:
            raise ConfigError(f"{path} is larger than any recipe ({BYTES >> 20} MiB)")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text: {error}") from error
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        return from_data(data, allow, filled)
    except (ValueError, RecursionError) as error:  # a ConfigError is a ValueError
        raise ConfigError(f"{path}: {error}") from error


def told(path: Path, filled: Iterable[Filled]) -> list[str]:
    """A sentence on the fields that a file did not have; none where it had them all."""
    said = ", ".join(map(str, filled))
    return [f"{path} is of an earlier version and takes the default of: {said}"] if said else []


def with_defaults(data: Any, value: Any) -> Any:
    """Data as `to_data` gives, with fields that the types of `value` have got since they were made.

    For comparing: only parts of the same type at the same place are filled, and no type is looked
    up by its name.
    """
    if isinstance(data, list) and isinstance(value, tuple) and len(data) == len(value):
        return [with_defaults(*pair) for pair in zip(data, value, strict=True)]
    if isinstance(data, dict) and isinstance(value, Mapping):
        return {k: with_defaults(v, value[k]) if k in value else v for k, v in data.items()}
    kind: Any = type(value)
    reference = f"{kind.__module__}:{kind.__qualname__}"
    if not (isinstance(data, dict) and is_part(value) and data.get("type") == reference):
        return data
    known = {field.name: field for field in fields(kind) if field.init}
    own = {k: with_defaults(v, getattr(value, k)) if k in known else v for k, v in data.items()}
    lacking = {name: default(field) for name, field in known.items() if name not in data}
    return own | {k: to_data(v) for k, v in lacking.items() if v is not MISSING}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(k for k, _ in pairs if [key for key, _ in pairs].count(k) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return result


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
