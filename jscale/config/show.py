"""Print settings and differences: aligned, for people and for grep."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from jscale.config.diff import ABSENT, Difference
from jscale.config.tree import is_leaf
from jscale.config.why import Setting

WIDEST = 72  # characters of a line that others are aligned with


def text(value: Any) -> str:
    """`value` as one would write it: a part by its type, a function by its name.

    A container whose contents have lines of their own is only counted.

    >>> text("a"), text(1e-4), text(int), text(None), text({"web": 0.9, "code": 0.1})
    ("'a'", '0.0001', 'int', 'None', '(2 below)')
    """
    if isinstance(value, type):
        return value.__name__
    if value is ABSENT:
        return "absent"
    if not is_leaf(value):
        return f"({len(value)} below)"
    return getattr(value, "__qualname__", None) or repr(value)


def short(value: Any, most: int = 48) -> str:
    """`value` as `text` gives it, cut to about `most` characters.

    Of a tuple its first items are left, and how many there are.

    >>> short("a" * 60, most=10), short(tuple(range(1000)), most=10)
    ("'aaaaaaaa…", '(0, 1, 2, 3, … 1000 in all)')
    """
    whole = text(value)
    if len(whole) <= most:
        return whole
    if not isinstance(value, tuple) or len(value) == 1:
        return whole[: most - 1] + "…"
    items: list[str] = []
    for item in value:
        items.append(short(item, most))
        if len(", ".join(items)) > most:
            break
    shown = ", ".join(items[:-1]) or items[0]
    return f"({shown}, … {len(value)} in all)"


def show_settings(
    settings: Iterable[Setting], file: TextIO | None = None, full: bool = False
) -> None:
    """Print `path = value   origin`, one line a setting, and its note below it if it has one.

    On a terminal a long value is shortened, unless `full`; elsewhere all are whole.
    """
    said = short if (file or sys.stdout).isatty() and not full else text
    rows = []
    for setting in settings:
        rows.append((f"{setting.path} = {said(setting.value)}", setting.origin))
        rows += [(f"    {setting.note}", "")] if setting.note else []
    show_rows(rows, file)


def show_differences(differences: Iterable[Difference], file: TextIO | None = None) -> None:
    """Print `path   left -> right`, one line a difference."""
    show_rows([(x.path, f"{text(x.left)} -> {text(x.right)}") for x in differences], file)


def show_rows(rows: Sequence[tuple[str, str]], file: TextIO | None = None) -> None:
    """Print two columns; on a terminal the second is dim and long lines are folded.

    The second column begins where the longest line of up to `WIDEST` characters ends: one long
    value does not push all the others out of sight.
    """
    out = file or sys.stdout
    if out.isatty():
        _show_rich(rows, out)
        return
    lengths = [len(left) for left, right in rows if right]
    width = max((length for length in lengths if length <= WIDEST), default=0)
    for left, right in rows:
        print(f"{left:<{width}}  {right}".rstrip(), file=out)


def _show_rich(rows: Sequence[tuple[str, str]], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for left, right in rows:
        table.add_row(Text(left, overflow="fold"), Text(right, style="dim", overflow="fold"))
    Console(file=out).print(table)
