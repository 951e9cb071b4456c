"""Watch a recipe function build its value, and say of each field where it was set.

The interpreter tells which call, at which line and column of which file, made each dataclass. The
syntax tree of that call tells which fields were given there. What neither can tell is said less
precisely, and never guessed.
"""

import ast
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from jscale.config.diff import ABSENT, same
from jscale.config.source import Source, default_of, read_source
from jscale.config.tree import below, is_leaf, is_part, join, shown

FACTORY = getattr(dataclasses, "_HAS_DEFAULT_FACTORY", object())  # passed for "call the factory"
REPLACE = ("replace", "_replace", "__replace__")


@dataclass(frozen=True)
class Site:
    """A running call: its code, the end of the call in the source, the names it can see."""

    code: CodeType
    end: tuple[int, int]
    module: str
    names: Mapping[str, Any] = field(repr=False)

    def through(self) -> str:
        """How to call this function in a sentence: `Llama.of_depth`, `quickstart.recipe`."""
        name = self.code.co_qualname
        return name if "." in name else f"{self.module.rpartition('.')[2]}.{name}"


@dataclass(frozen=True)
class Birth:
    """How one dataclass came to be: its arguments, and the calls around it, innermost first."""

    made: Any  # kept alive, so that its id stays its own
    arguments: Mapping[str, Any]
    sites: Sequence[Site]
    replaced: Any  # the value that `dataclasses.replace` started from


def watch(make: Callable[[], Any]) -> tuple[Any, list[Birth]]:
    """The result of `make()`, and the birth of every dataclass made meanwhile in this thread."""
    births: list[Birth] = []

    def listen(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == "__init__" and code.co_filename == "<string>":
            births.append(_birth(frame))

    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        value = make()
    finally:
        sys.setprofile(before)
    return value, births


def _birth(frame: FrameType) -> Birth:
    """The birth of the dataclass whose generated `__init__` is about to run in `frame`."""
    name, *_ = frame.f_code.co_varnames
    arguments = {key: value for key, value in frame.f_locals.items() if key != name}
    made, replaced = frame.f_locals[name], None
    sites = []
    caller = frame.f_back
    while caller is not None:
        if caller.f_code.co_filename == dataclasses.__file__ and not sites:
            if caller.f_code.co_name in REPLACE:
                replaced = caller.f_locals.get("obj", caller.f_locals.get("self"))
        elif not _is_checker(caller):
            sites.append(_site(caller))
        caller = caller.f_back
    return Birth(made, arguments, sites, replaced)


def _is_checker(frame: FrameType) -> bool:
    """Whether a frame is a run-time type checker's, standing between a call and its target."""
    module = frame.f_globals.get("__name__", "").partition(".")[0]
    return module in ("jaxtyping", "beartype") or frame.f_code.co_filename.startswith("<@beartype")


def _site(frame: FrameType) -> Site:
    positions = islice(frame.f_code.co_positions(), max(frame.f_lasti, 0) // 2, None)
    _, line, _, column = next(positions, (0, 0, 0, 0))
    end = (line or 0, column or 0)
    return Site(frame.f_code, end, frame.f_globals.get("__name__", ""), frame.f_globals)


@dataclass(frozen=True)
class Story:
    """What is known of how `module`'s `function` built its value."""

    module: ModuleType
    function: str
    births: Mapping[int, Birth]
    sources: dict[str, Source]

    def origins(self, value: Any) -> dict[str, str]:
        """The origin of everything below `value`, by dotted path."""
        found: dict[str, str] = {}
        self._tell(value, "", None, found)
        return found

    def _tell(self, value: Any, path: str, forced: str | None, found: dict[str, str]) -> None:
        for name, child in below(value):
            here = join(path, name)
            if forced:
                found[here], passed_on = forced, forced
            elif is_part(value):
                found[here], passed_on = self._field(value, name)
            else:
                found[here], passed_on = found.get(path, self.somewhere), None
            self._tell(child, here, passed_on, found)

    @property
    def somewhere(self) -> str:
        """The origin of what cannot be told more precisely."""
        return f"set in {self.function}() of {shown(Path(self.file))}"

    @property
    def file(self) -> str:
        """The recipe's own file."""
        return self.module.__file__ or ""

    def source(self, file: str) -> Source:
        """The source text of `file`."""
        if file not in self.sources:
            self.sources[file] = read_source(file)
        return self.sources[file]

    def _field(self, part: Any, name: str) -> tuple[str, str | None]:
        """The origin of a field, and the same again if everything below shares it."""
        birth = self.births.get(id(part))
        if birth is None:
            return self._constant(part, name)
        passed, now = birth.arguments.get(name, ABSENT), getattr(part, name)
        if passed is FACTORY:
            origin = default_of(type(part), name)
            return origin, origin
        if passed is not now and not (is_leaf(now) and same(passed, now)):
            origin = f"computed by {type(part).__name__}"
            return origin, origin
        return self._passed(birth, name)

    def _passed(self, birth: Birth, name: str) -> tuple[str, str | None]:
        """The origin of a field whose value `__init__` was given or has by default."""
        index = next((i for i, site in enumerate(birth.sites) if self._is_ours(site)), None)
        if index is None:
            return self.somewhere, None
        node = self._call(birth.sites[0])
        vague = self._through(birth.sites[: index + 1]) if index else self.somewhere
        if birth.replaced is not None:
            given = _keywords(node) if node else None
        else:
            given = _given(node, type(birth.made), birth.sites[0].names) if node else None
        if given is None or node is None:
            return vague, None
        if name in given:
            place = self.source(self.file).at(given[name])
            return (vague if index else f"set at {place}"), None
        if _has_stars(node):
            return vague, None
        if birth.replaced is not None:
            kept = getattr(birth.replaced, name) is birth.arguments[name]
            return self._field(birth.replaced, name) if kept else (vague, None)
        return self._default(birth.made, name, birth.arguments[name], vague)

    def _is_ours(self, site: Site) -> bool:
        return site.code.co_filename == self.file and site.code.co_name != "<module>"

    def _through(self, sites: Sequence[Site]) -> str:
        """`from Llama.of_depth, called at quickstart.py:20`."""
        ours, called = sites[-1], sites[-2]
        node = self._call(ours)
        odd = called.code.co_name == "<module>" or called.code.co_filename.startswith("<")
        if node is None or odd:  # made while something was imported, or by generated code
            return self.somewhere
        return f"from {called.through()}, called at {self.source(self.file).at(node.lineno)}"

    def _call(self, site: Site) -> ast.Call | None:
        return self.source(site.code.co_filename).calls.get(site.end)

    def _constant(self, part: Any, name: str) -> tuple[str, str | None]:
        """The origin of a field of `NAME = Llama(...)` at the top of the recipe's file."""
        source = self.source(self.file)
        names = [key for key, value in vars(self.module).items() if value is part]
        stored = [x for x in source.stores if x in names]
        made = [value for target, value in source.constants if target in names]
        if len(stored) != 1 or len(made) != 1 or not isinstance(made[0], ast.Call):
            return self.somewhere, None
        given = _given(made[0], type(part), vars(self.module))
        if given is not None and name in given:
            return f"set at {source.at(given[name])}", None
        if given is None or _has_stars(made[0]):
            return self.somewhere, None
        return self._default(part, name, getattr(part, name), self.somewhere)

    def _default(self, part: Any, name: str, passed: Any, vague: str) -> tuple[str, str | None]:
        """The origin of a field that the call does not give: its default, if that is there."""
        kind = type(part)
        if passed is not kind.__dataclass_fields__[name].default:
            return vague, None
        origin = default_of(kind, name)
        return origin, origin


def tell(module: ModuleType, function: str, value: Any, births: Sequence[Birth]) -> dict[str, str]:
    """The origin of everything below `value`, which `function` of `module` built as watched."""
    story = Story(module, function, {id(birth.made): birth for birth in births}, {})
    return story.origins(value)


def _has_stars(node: ast.Call) -> bool:
    stars = [x for x in node.args if isinstance(x, ast.Starred)]
    return bool(stars) or any(word.arg is None for word in node.keywords)


def _keywords(node: ast.Call) -> dict[str, int]:
    return {word.arg: word.lineno for word in node.keywords if word.arg}


def _given(node: ast.Call, kind: type, names: Mapping[str, Any]) -> dict[str, int] | None:
    """The line on which each field is given in a call of `kind`; None if it calls another thing.

    `names` are the globals that the call can see.
    """
    head = node.func
    name = head.attr if isinstance(head, ast.Attribute) else getattr(head, "id", "")
    known = names.get(name)
    if known is not kind and not (known is None and name in (kind.__name__, "cls")):
        return None
    fields = [x.name for x in dataclasses.fields(kind) if x.init and not x.kw_only]
    starred = next((i for i, x in enumerate(node.args) if isinstance(x, ast.Starred)), None)
    positional = zip(fields, node.args[:starred], strict=False)
    return {**{x: argument.lineno for x, argument in positional}, **_keywords(node)}
