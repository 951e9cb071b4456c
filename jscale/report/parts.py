"""Small pieces of a report: sections, tables, bars, exact numbers in a readable form."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from jscale.metrics.figures import count
from jscale.pictures.markup import Child, Markup, element, number


def section(key: str, title: str, *content: Child) -> Markup:
    """A part of a page under a heading that can be linked to."""
    return element("section", element("h2", title), content, id=key)


def note(*words: Child) -> Markup:
    return element("p", words, class_="note")


def exact(value: float | int, words: str | None = None) -> Markup:
    """A number to be read, with all its digits in the element's `value`."""
    return element("data", words if words is not None else figure(value), value=repr(value))


def figure(value: float | int) -> str:
    """A number in five digits that count.

    >>> figure(2.3456789), figure(14397.86), figure(0.0), figure(3e-7), figure(100)
    ('2.3457', '14,398', '0', '3e-07', '100')
    """
    if isinstance(value, int) or (abs(value) >= 1e4 and abs(value) < 1e9):
        return f"{value:,.0f}"
    return f"{value:.5g}"


def rounded(value: float | int) -> str:
    """A count as a person says it: `18.4M`."""
    return count(value)


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Child]],
    numbers: Collection[str] = (),
    codes: Collection[str] = (),
) -> Markup:
    """A table that scrolls within itself where it is too wide; the first column names the rows."""

    def styled(name: str) -> str | None:
        return "number" if name in numbers else "code" if name in codes else None

    def cell(i: int, content: Child) -> Markup:
        kind = "th" if i == 0 else "td"
        scope = "row" if i == 0 else None
        return element(kind, content, class_=styled(header[i]), scope=scope)

    head = element("tr", [element("th", h, class_=styled(h), scope="col") for h in header])
    body = [element("tr", [cell(i, c) for i, c in enumerate(row)]) for row in rows]
    whole = element("table", element("thead", head), element("tbody", body))
    return element("div", whole, class_="scroll", tabindex=0)


def facts(rows: Iterable[tuple[str, Child]]) -> Markup:
    """Names and values below each other, in two columns without a header."""
    made = [
        element("tr", element("th", name, scope="row"), element("td", value, class_="code"))
        for name, value in rows
    ]
    return element("div", element("table", element("tbody", made)), class_="scroll", tabindex=0)


def percent(part: float) -> str:
    return f"{number(100 * part)}%"


def bar(parts: Sequence[tuple[float, int]], words: str, high: bool = False) -> Markup:
    """A bar of (part of the whole, colour)s from left to right, as wide as there is room."""
    shapes, at = [element("rect", class_="rest", width="100%", height="100%")], 0.0
    for part, colour in parts:
        place = {"x": percent(at), "width": percent(max(part, 0.0)), "height": "100%"}
        shapes.append(element("rect", class_=f"cell f{colour % 8}", **place))
        at += part
    kind = "picture bar high" if high else "picture bar"
    return element("svg", element("title", words), shapes, class_=kind, role="img")


def swatch(colour: int) -> Markup:
    square = element("rect", class_=f"f{colour % 8}", width=10, height=10)
    return element("svg", square, class_="picture swatch", viewBox="0 0 10 10", aria_hidden="true")


def details(summary: str, *content: Child) -> Markup:
    """Something that is folded away until it is asked for."""
    return element("details", element("summary", summary), content)


def text_of(value: Any) -> str:
    """A value of a recipe's JSON as one reads it: a type by its name, text in quotes."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return short_name(value["type"])
    return repr(value)


def short_name(reference: str) -> str:
    """`jscale.models.llama:Llama` as `Llama`; a name from elsewhere keeps its module.

    >>> short_name("jscale.models.llama:Llama"), short_name("mine:Model")
    ('Llama', 'mine:Model')
    """
    module, _, name = reference.partition(":")
    return name if name and module.startswith("jscale.") else reference
