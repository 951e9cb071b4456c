"""A page on every type that a value may hold, made from the types: fields, defaults, meanings.

What a page says of a field is the comment on it in the source, or the sentence of its class's
docstring that names it, so page and code cannot part.
"""

import importlib
import re
import types
from collections.abc import Callable, Iterator, Sized
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from jscale.config.annotations import describe, hints, is_mapping, members
from jscale.config.data import default
from jscale.config.parse import family
from jscale.config.source import documented, note

TABLE = "| field | type | default | what it is |\n|---|---|---|---|\n"
SECTION = re.compile(r"^\s*(Raises|Args|Returns|>>>).*", re.MULTILINE | re.DOTALL)
LONGEST = 60  # characters of a default


def reference(root: type) -> str:
    """The page, in Markdown: a section for `root`, and one for each type that it may hold."""
    return "\n".join(section(kind) for kind in holdable(root))


def holdable(root: type) -> list[type]:
    """`root`, and every dataclass and protocol that a field of one of them may hold, in order.

    For a protocol these are the dataclasses beside it that have what it asks for; classes of the
    user's own are left out.
    """
    found: dict[type, None] = {}
    waiting = [root]
    while waiting:
        kind = waiting.pop(0)
        if kind not in found:
            found[kind] = None
            below = [x for annotation in annotations(kind) for x in parts(annotation)]
            waiting = [*(candidates(kind) if is_protocol(kind) else below), *waiting]
    return list(found)


def annotations(kind: type) -> list[Any]:
    """The annotation of each field that is given when one is made."""
    known = hints(kind)
    return [known[f.name] for f in own_fields(kind)] if is_dataclass(kind) else []


def own_fields(kind: type) -> list[Field[Any]]:
    return [field for field in fields(kind) if field.init]


def parts(annotation: Any) -> Iterator[type]:
    """The dataclasses and protocols in an annotation, however deep."""
    for member in members(annotation):
        if isinstance(member, type) and (is_dataclass(member) or is_protocol(member)):
            yield member
        elif get_origin(member) is not Literal:
            for inner in get_args(member):
                yield from parts(inner)


def is_protocol(kind: type) -> bool:
    """Whether it is a protocol of ours, which a dataclass can fulfil."""
    own = not kind.__module__.startswith(("typing", "collections", "builtins"))
    return own and bool(getattr(kind, "_is_protocol", False))


def candidates(protocol: type) -> list[type]:
    """The dataclasses that can stand for a protocol: those in its own module, or in its package.

    They have all that it asks for, and are no containers of it: `Logging`, which holds writers, can
    be opened like one and is none.
    """
    package = protocol.__module__.rpartition(".")[0]
    if "." in package:
        importlib.import_module(package)
    wanted = [name for name in vars(protocol) if name == "__call__" or not name.startswith("_")]
    beside = {x for x in family([protocol]).values() if isinstance(x, type)}
    has = lambda x, name: hasattr(x, name) or name in x.__dataclass_fields__
    parts_of = {x for x in beside if is_dataclass(x) and all(has(x, name) for name in wanted)}
    fit = [x for x in parts_of if not holds(x, protocol)]
    own = [x for x in fit if x.__module__ == protocol.__module__]
    return sorted(own or fit, key=lambda kind: kind.__name__)


def holds(kind: type, protocol: type) -> bool:
    """Whether a field of `kind` is a tuple or a mapping of what fulfils `protocol`."""
    return any(
        protocol in parts(inner)
        for annotation in annotations(kind)
        for member in members(annotation)
        for inner in get_args(member)
    )


def section(kind: type) -> str:
    """The heading, what the class says of itself, and its fields."""
    lines = [f"### {kind.__name__}\n", f"`{kind.__module__}`. {markdown(about(kind))}\n"]
    if is_protocol(kind):
        names = ", ".join(link(x) for x in candidates(kind))
        lines.append(f"One of {names}, or a frozen dataclass of your own that does the same.\n")
    elif own_fields(kind):
        lines.append(TABLE + "".join(row(kind, field) for field in own_fields(kind)))
    else:
        lines.append("It has no fields.\n")
    return "\n".join(lines)


def about(kind: type) -> str:
    """The docstring of a class in one paragraph, without its fields, what it raises, examples."""
    text = SECTION.sub("", kind.__doc__ or "")
    for field in own_fields(kind) if is_dataclass(kind) else ():
        text = documented(field.name).sub("", text)
    return " ".join(text.split())


def markdown(text: str) -> str:
    """Text in which what Markdown would take for a tag or a column is not one.

    >>> markdown("runs/<name>, `a<b`, a|b")
    'runs/\\\\<name>, `a<b`, a\\\\|b'
    """
    pieces = text.replace("|", r"\|").split("`")
    pieces[::2] = [piece.replace("<", r"\<") for piece in pieces[::2]]
    return "`".join(pieces)


def row(kind: type, field: Field[Any]) -> str:
    """A line of the table."""
    annotation = hints(kind)[field.name]
    what = markdown(meaning(kind, field.name))
    cells = (f"`{field.name}`", typed(annotation), shown_default(field), what)
    return "| " + " | ".join(cells) + " |\n"


def option(kind: type, field: Field[Any]) -> tuple[str, str, str, str]:
    """A line of the table in plain text: name, type, default, meaning."""
    words = typed(hints(kind)[field.name], lambda part: part.__name__).replace("`", "")
    return field.name, words, shown_default(field).strip("`"), meaning(kind, field.name)


def typed(annotation: Any, part: Callable[[type], str] | None = None) -> str:
    """An annotation in words, with a link to each type that has a section, or what `part` says."""
    return " or ".join(typed_member(member, part or link) for member in members(annotation))


def typed_member(kind: Any, part: Callable[[type], str]) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and (is_dataclass(kind) or is_protocol(kind)):
        return part(kind)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return f"tuple of {typed(inner[0], part)}"
    if origin is tuple:
        return f"({', '.join(typed(x, part) for x in inner)})"
    if is_mapping(kind) and len(inner) == 2:
        return f"mapping of {typed(inner[0], part)} to {typed(inner[1], part)}"
    if origin is Literal:
        return f"`{describe(kind)}`"
    return describe(kind)


def link(kind: type) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def shown_default(field: Field[Any]) -> str:
    """What a field is when it is not given, as one would write it; empty where it must be given."""
    value = default(field)
    if value is MISSING:
        return "required"
    if isinstance(value, types.FunctionType):
        return f"`{value.__name__}`"
    text = written(value)
    if len(text) <= LONGEST:
        return f"`{text}`"
    return f"{len(value)} entries" if isinstance(value, Sized) else f"`{type(value).__name__}(…)`"


def written(value: Any) -> str:
    """`value` as a recipe writes it: of a part, only the fields that are not at their defaults.

    >>> from jscale.config.diff import Difference
    >>> written((Difference("a", 1, 2.0), None))
    "(Difference(path='a', left=1, right=2.0), None)"
    """
    if isinstance(value, tuple):
        items = ", ".join(map(written, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = {f.name: getattr(value, f.name) for f in own_fields(type(value))}
    changed = {f.name for f in own_fields(type(value)) if default(f) != given[f.name]}
    words = ", ".join(f"{name}={written(x)}" for name, x in given.items() if name in changed)
    return f"{type(value).__name__}({words})"


def meaning(kind: type, name: str) -> str:
    """What the source says of a field: a comment, or the first sentence that names it."""
    return note(kind, name) or next(
        (sentence for sentence in sentences(about(kind)) if f"`{name}`" in sentence), ""
    )


def sentences(text: str) -> list[str]:
    """A text cut at the ends of its sentences.

    >>> sentences("`a` is 1.5 wide. `b`, e.g. 2, is not: it is long.")
    ['`a` is 1.5 wide.', '`b`, e.g. 2, is not: it is long.']
    """
    return re.split(r"(?<=[^.][a-z0-9)`'\"]\.) (?=[A-Z`])", text)
