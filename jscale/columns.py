"""Rows of text under a header: as aligned lines, and as a table of HTML."""

from collections.abc import Collection, Sequence

from jscale.pictures.markup import Markup, element

Cells = Sequence[str]


def aligned(header: Cells, rows: Sequence[Cells], numbers: Collection[str] = ()) -> list[str]:
    """A line for the header and each row; the columns named in `numbers` are set to the right.

    >>> aligned(("name", "size"), [("a", "1,024"), ("b", "7")], numbers=("size",))
    ['name   size', 'a     1,024', 'b         7']
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [name in numbers for name in header]

    def line(row: Cells) -> str:
        sides = zip(row, widths, right, strict=True)
        return "  ".join(c.rjust(w) if at_right else c.ljust(w) for c, w, at_right in sides)

    return [line(row).rstrip() for row in (header, *rows)]


def html_table(
    caption: str, header: Cells, rows: Sequence[Cells], numbers: Collection[str] = ()
) -> Markup:
    """The same as a table of HTML, with nothing in it but text."""
    right = ["text-align: right" if name in numbers else None for name in header]
    cells = lambda tag, row: [
        element(tag, cell, style=style) for cell, style in zip(row, right, strict=True)
    ]
    head = element("thead", element("tr", cells("th", header)))
    body = element("tbody", [element("tr", cells("td", row)) for row in rows])
    return element("table", element("caption", caption), head, body)
