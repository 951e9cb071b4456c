"""What source text says of a class: the line of a field, the comments on it."""

import ast
import re
import sys
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

from jscale.config.tree import shown

Calls = Mapping[tuple[int, int], ast.Call]


@dataclass(frozen=True)
class Source:
    """One file of Python, read once."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree; empty if the text is no Python."""
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError):
            return ast.Module([], [])

    @cached_property
    def calls(self) -> Calls:
        """Every call in the file by the line and column at which it ends, which no two share."""
        found = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        return {(node.end_lineno or 0, node.end_col_offset or 0): node for node in found}

    @cached_property
    def comments(self) -> Mapping[int, str]:
        """The comment on each line that has one, without its `#`."""
        try:
            tokens = list(tokenize.generate_tokens(StringIO(self.text).readline))
        except (tokenize.TokenError, SyntaxError):
            return {}
        found = [token for token in tokens if token.type == tokenize.COMMENT]
        return {token.start[0]: token.string.lstrip("#:! ").rstrip() for token in found}

    @cached_property
    def constants(self) -> Sequence[tuple[str, ast.expr]]:
        """What each `NAME = value` at the top of the file assigns, in order."""
        found = [statement for statement in self.tree.body if isinstance(statement, ast.Assign)]
        return [
            (target.id, statement.value)
            for statement in found
            for target in statement.targets
            if isinstance(target, ast.Name)
        ]

    @cached_property
    def stores(self) -> Sequence[str]:
        """The name of every assignment to a variable, wherever it stands, once for each."""
        names = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name)]
        return [name.id for name in names if isinstance(name.ctx, ast.Store)]

    def class_named(self, name: str) -> ast.ClassDef | None:
        """The class of that name at the top of the file, if it stands there exactly once."""
        found = [x for x in self.tree.body if isinstance(x, ast.ClassDef) and x.name == name]
        return found[0] if len(found) == 1 else None

    def field(self, owner: str, name: str) -> ast.AnnAssign | None:
        """The statement that declares the field `name` of the class `owner`."""
        node = self.class_named(owner)
        for statement in node.body if node else ():
            if isinstance(statement, ast.AnnAssign) and _target(statement) == name:
                return statement
        return None

    def at(self, line: int) -> str:
        """`file.py:12`."""
        return f"{shown(self.path)}:{line}"


def _target(statement: ast.AnnAssign) -> str:
    return statement.target.id if isinstance(statement.target, ast.Name) else ""


def read_source(path: str | Path) -> Source:
    """The source text of a file; empty if there is none to read."""
    try:
        with tokenize.open(path) as file:
            return Source(Path(path), file.read())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return Source(Path(path), "")


def home(kind: type) -> Source:
    """The source of the module that defines `kind`."""
    return read_source(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")


def declaring(kind: type, name: str) -> type:
    """The class among the bases of `kind` in which the field `name` is declared."""
    owners = (base for base in kind.__mro__ if name in vars(base).get("__annotations__", {}))
    return next(owners, kind)


def default_of(kind: type, name: str) -> str:
    """Where the default of a field comes from: `default of Llama (models/llama.py:12)`."""
    owner = declaring(kind, name)
    source = home(owner)
    statement = source.field(owner.__name__, name)
    place = f" ({source.at(statement.lineno)})" if statement else ""
    return f"default of {owner.__name__}{place}"


def note(kind: type, name: str) -> str:
    """What the class says of a field: the comment on its line, those above, or its docstring.

    In a docstring it is the line `name: ...`, with the deeper lines that follow.
    """
    owner = declaring(kind, name)
    source = home(owner)
    statement = source.field(owner.__name__, name)
    if statement is None:
        return ""
    lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    beside = [source.comments[line] for line in lines if line in source.comments]
    return " ".join(beside) or _above(source, statement.lineno) or _documented(owner, name)


def _above(source: Source, line: int) -> str:
    """The comment lines directly above `line`."""
    rows = source.text.splitlines()
    found: list[str] = []
    while line >= 2 and rows[line - 2].lstrip().startswith("#"):
        line -= 1
        found.insert(0, source.comments.get(line, ""))
    return " ".join(found)


def _documented(owner: type, name: str) -> str:
    found = documented(name).search(owner.__doc__ or "")
    return " ".join(found.group(2).split()) if found else ""


def documented(name: str) -> re.Pattern[str]:
    """A pattern for the line `name: ...` of a docstring, with the deeper lines that follow."""
    mark = rf"^([ \t]*)`*{re.escape(name)}`*[ \t]*:[ \t]*(.+(?:\n\1[ \t]+\S.*)*)"
    return re.compile(mark, re.MULTILINE)
