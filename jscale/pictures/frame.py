"""The frame of a chart: scales, the two axes with their marks, title and legend. Units: pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jscale.pictures.markup import Markup, element, number
from jscale.pictures.ticks import labels, linear_ticks, log_ticks

COLOURS = 8
LETTER = 6.1  # the width of a letter of 11 pixels, on the safe side
ROW = 16  # the height of a row of the legend


@dataclass(frozen=True)
class Axis:
    """What an axis measures. Values are divided by `divide` to be read, and end in `suffix`."""

    title: str = ""
    divide: float | int = 1.0
    suffix: str = ""


class Frame:
    """The rectangle in which curves are drawn, and the way from values to places in it.

    `x` and `y` are the values at its edges; `width` and `height` hold the axes too.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        logarithmic: bool,
        width: float | int,
        height: float | int,
    ) -> None:
        self.x, self.y, self.logarithmic = x, y, logarithmic
        self.width, self.height = width, height
        self.top, self.right, self.bottom = 8.0, width - 10.0, height - 34.0
        self.left = 46.0

    def x_at(self, values: Any) -> np.ndarray:
        """The places of values along the x axis."""
        low, high = self.x
        part = (np.asarray(values) - low) / (high - low)
        return np.asarray(self.left + part * (self.right - self.left))

    def y_at(self, values: Any) -> np.ndarray:
        """The places of values along the y axis, which grow downwards."""
        low, high, values = *self.y, np.asarray(values)
        if self.logarithmic:
            low, high, values = math.log(low), math.log(high), np.log(values)
        part = (values - low) / (high - low)
        return np.asarray(self.bottom - part * (self.bottom - self.top))

    @cached_property
    def place(self) -> str:
        """`left top right bottom` and the values at left and right, for the script of a page."""
        box = (number(v) for v in (self.left, self.top, self.right, self.bottom))
        return " ".join([*box, repr(float(self.x[0])), repr(float(self.x[1]))])


def axes_of(frame: Frame, x: Axis, y: Axis) -> Markup:
    """Grid lines, numbers and the names of both axes."""
    find = log_ticks if frame.logarithmic else linear_ticks
    left, right = (v / x.divide for v in frame.x)
    low, high = (v / y.divide for v in frame.y)
    across = linear_ticks(left, right, max(2, int(frame.width // 90)))
    up = find(low, high, max(2, int(frame.height // 48)))
    shapes: list[Markup] = []
    for tick, words in zip(up, labels(up), strict=True):
        place = float(frame.y_at(tick * y.divide))
        shapes.append(
            element(
                "path",
                class_="grid",
                d=f"M{number(frame.left)} {number(place)}H{number(frame.right)}",
            )
        )
        shapes.append(
            element(
                "text",
                words + y.suffix,
                class_="soft",
                x=frame.left - 6,
                y=place + 3.5,
                text_anchor="end",
            )
        )
    for tick, words in zip(across, labels(across), strict=True):
        place = float(frame.x_at(tick * x.divide))
        shapes.append(
            element("path", class_="axis", d=f"M{number(place)} {number(frame.bottom)}v4")
        )
        shapes.append(
            element(
                "text",
                words + x.suffix,
                class_="soft",
                x=place,
                y=frame.bottom + 16,
                text_anchor="middle",
            )
        )
    shapes.append(
        element(
            "path",
            class_="axis",
            d=f"M{number(frame.left)} {number(frame.bottom)}H{number(frame.right)}",
        )
    )
    shapes.append(
        element(
            "text", x.title, class_="soft", x=frame.right, y=frame.bottom + 30, text_anchor="end"
        )
    )
    if y.title:
        shapes.append(element("text", y.title, class_="soft", x=frame.left, y=frame.top - 1))
    return Markup("".join(shapes))


class Legend(NamedTuple):
    """A title and the names of the curves, above a frame."""

    shapes: Markup
    height: float


def wide(text: str, letters: int) -> str:
    """The text, its middle left out where it is too long.

    >>> wide("a long name of a curve", 11)
    'a lon…curve'
    """
    if len(text) <= letters:
        return text
    half = (letters - 1) // 2
    return f"{text[: letters - 1 - half]}…{text[len(text) - half :]}"


class Stroke(NamedTuple):
    """How a curve is drawn: one of eight colours, from 0, and a pattern of dashes if it has one."""

    colour: int
    dash: str | None = None


def stroke_of(place: int) -> Stroke:
    """How the curve at a place among others is drawn: colours first, then dashes."""
    return Stroke(place % COLOURS, "5 3" if place >= COLOURS else None)


def legend_of(title: str, names: Sequence[tuple[str, Stroke]], width: float | int) -> Legend:
    """The title, and a swatch for each curve where there are several, in as many rows as needed."""
    most = int(width / LETTER) - 6
    shapes = [element("text", wide(title, int(most * 0.9)), class_="title", x=0, y=11)]
    if len(names) < 2:
        return Legend(Markup(shapes[0]), 22.0)
    x, y = 0.0, 18.0 + ROW / 2
    for whole, stroke in names:
        name = wide(whole, most)
        room = 22 + LETTER * len(name) + 10
        if x and x + room > width:
            x, y = 0.0, y + ROW
        shapes.append(
            element(
                "path",
                class_=f"line k{stroke.colour}",
                d=f"M{number(x)} {number(y)}h16",
                stroke_dasharray=stroke.dash,
            )
        )
        shapes.append(element("text", name, x=x + 21, y=y + 3.5))
        x += room
    return Legend(Markup("".join(shapes)), y + ROW / 2 + 4)
