"""SVG and HTML as text in which nothing is markup unless this file made it."""

import html
import re
from collections.abc import Iterable
from typing import Any

UNSAYABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
VOID = frozenset({"br", "meta", "link"})  # elements of HTML that have no end
LEAVES = frozenset({"rect", "line", "circle", "path", "use"})  # of SVG, written without an end


class Markup(str):
    """Text that is markup already; plain text that becomes a child is escaped."""


Child = str | None | Iterable[Any]  # as deep as one likes
Value = str | int | float | None


def element(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """An element; `class_` is `class`, other underscores are hyphens, None leaves one out.

    >>> element("p", "a < b", class_="note", data_x=1.5)
    '<p class="note" data-x="1.5">a &lt; b</p>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{words}>")
    if name in LEAVES and not children:
        return Markup(f"<{name}{words}/>")
    return Markup(f"<{name}{words}>{joined(children)}</{name}>")


def joined(children: Child) -> Markup:
    """The children in a row, plain text escaped."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return escaped(children)
    return Markup("".join(joined(child) for child in children))


def escaped(text: str) -> Markup:
    """The text as it is to be read; what no document may hold becomes a replacement character.

    >>> escaped("<b>&\\x00")
    '&lt;b&gt;&amp;\ufffd'
    """
    return Markup(html.escape(UNSAYABLE.sub("\ufffd", text)))


def attribute(value: str | int | float) -> str:
    """An attribute's value; a float to a hundredth, which is finer than any screen."""
    return number(value) if isinstance(value, float) else escaped(str(value))


def number(value: float, digits: int = 2) -> str:
    """A coordinate in as few characters as tell it to so many digits behind the point.

    >>> number(3.0), number(0.126), number(-0.001)
    ('3', '0.13', '0')
    """
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
