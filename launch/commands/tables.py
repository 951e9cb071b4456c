"""A table in the terminal, or plain columns where it is piped into something."""

import sys
from collections.abc import Collection, Sequence

from jscale.columns import aligned


def show(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()
) -> None:
    """Prints rows of text under a header; the columns named in `numbers` are set to the right."""
    if sys.stdout.isatty():
        _rich(header, rows, numbers)
        return
    print(*aligned(header, rows, numbers), sep="\n")


def _rich(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: names may hold square brackets
    Console().print(table)
