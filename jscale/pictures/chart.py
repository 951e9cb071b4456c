"""Line charts: named curves over a common axis, as SVG that reads without a script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jscale.errors import ConfigError
from jscale.pictures.frame import Axis, Frame, Legend, Stroke, axes_of, legend_of, stroke_of, wide
from jscale.pictures.markup import Markup, element, number
from jscale.pictures.picture import Drawing, Picture
from jscale.pictures.thin import stretches, thinned
from jscale.pictures.ticks import plain, short

POINTS = 800  # of one curve on paper; more cannot be seen
DOTTED = 40  # a curve of no more points shows each of them
DENSE = 300  # a curve of more is drawn with a finer line
LARGEST = 1e150  # of a value that is drawn
SPAN = 100.0  # a ratio of largest to smallest from which "auto" takes a logarithmic scale


@dataclass(frozen=True, eq=False)
class Series:
    """A named curve: as many x as y, x ascending; a y that is not finite is a gap.

    Without a `stroke` it has that of its place among the curves of a chart.

    Raises:
        ConfigError: x and y differ in length.
    """

    name: str
    x: Sequence[float | int] | np.ndarray
    y: Sequence[float | int] | np.ndarray
    stroke: Stroke | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ConfigError(
                f"the curve {self.name!r} has {len(self.x)} places and {len(self.y)} values"
            )

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y as arrays, without places that are not finite.

        A y at the end of what a float64 can be counts as not finite, or as 0: a scale needs room.
        """
        x, y = np.asarray(self.x, float), np.asarray(self.y, float)
        y = np.where(np.abs(y) > LARGEST, np.copysign(np.inf, y), y)
        y = np.where(np.abs(y) < 1 / LARGEST, 0.0, y)
        known = np.isfinite(x)
        return x[known], y[known]


@dataclass(frozen=True, eq=False)
class Chart:
    """Curves in one frame: `Chart("loss", [Series("train", steps, losses)])`.

    `scale` of the y axis is logarithmic by "auto" where all values are positive and span a factor
    of a hundred. Long curves are thinned to their smallest and largest values. Width and height
    are in pixels.
    """

    title: str
    series: Sequence[Series]
    x: Axis = Axis("step")
    y: Axis = Axis()
    scale: Literal["linear", "log", "auto"] = "auto"
    width: int = 640
    height: int = 280

    def __repr__(self) -> str:
        return f"<Chart of {', '.join(s.name for s in self.series)}>"

    @cached_property
    def logarithmic(self) -> bool:
        """Whether the y axis is; never where a value is not positive."""
        values = self._finite
        if self.scale == "linear" or not len(values) or values.min() <= 0:
            return False
        return self.scale == "log" or bool(values.max() / values.min() >= SPAN)

    @cached_property
    def _finite(self) -> np.ndarray:
        values = np.concatenate([s.points[1] for s in self.series] or [np.zeros(0)])
        return values[np.isfinite(values)]

    @cached_property
    def frame(self) -> Frame:
        """Where values are on paper."""
        places = np.concatenate([s.points[0] for s in self.series] or [np.zeros(0)])
        x = around(places) if len(places) else (0.0, 1.0)
        if self.logarithmic:
            low, high = float(self._finite.min()), float(self._finite.max())
            grow = (high / low) ** 0.04 if high > low else 1.5
            y = (low / grow, high * grow)
        else:
            y = around(self._finite, 0.06) if len(self._finite) else (0.0, 1.0)
        return Frame(x, y, self.logarithmic, self.width, self.height - self.legend.height)

    @cached_property
    def legend(self) -> Legend:
        return legend_of(self.title, self.strokes, self.width)

    @property
    def strokes(self) -> list[tuple[str, Stroke]]:
        """The name of each curve and how it is drawn."""
        return [(s.name, s.stroke or stroke_of(i)) for i, s in enumerate(self.series)]

    def drawing(self) -> Drawing:
        """Its shapes."""
        below = self.legend.height
        shapes = [axes_of(self.frame, self.x, self.y)]
        shapes += [self._curve(i, s) for i, s in enumerate(self.series)]
        if not len(self._finite):
            middle = self.frame.width / 2, self.frame.height / 2
            shapes.append(
                element("text", "no values", class_="soft", x=middle[0], y=middle[1], **MIDDLE)
            )
        where = f"translate(0 {below:g})"
        content = element("g", shapes, transform=where, data_frame=self.frame.place)
        return Drawing(Markup(self.legend.shapes + content), self.width, self.height)

    def picture(self) -> Picture:
        """The chart with its words for those who cannot see it."""
        return Picture(self.drawing(), self.title, self.description)

    @property
    def description(self) -> str:
        """The curves in words: how many values, from where to where, the smallest and the last."""
        return "; ".join(described(s, self.x) for s in self.series) or "no curves"

    def svg(self) -> str:
        """The chart as SVG text that stands alone."""
        return self.picture().alone()

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_html_(self) -> str:
        return self.svg()

    def save(self, path: str | Path) -> Path:
        """Write the chart as an SVG file.

        Raises:
            ConfigError: it cannot be written there, or the name does not end in .svg.
        """
        return self.picture().save(path)

    def _curve(self, index: int, series: Series) -> Markup:
        x, y = series.points
        keep = thinned(y, POINTS)
        x, y = x[keep], y[keep]
        stroke, frame = self.strokes[index][1], self.frame
        few = len(y) <= min(DOTTED, self.width // 14)
        px, py = frame.x_at(x), frame.y_at(np.where(np.isfinite(y), y, np.nan))
        parts, dots = [], []
        for begin, end in stretches(y):
            pairs = [
                f"{number(a, 1)} {number(b, 1)}"
                for a, b in zip(px[begin:end], py[begin:end], strict=True)
            ]
            parts.append(f"M{'L'.join(pairs)}")
            if end - begin == 1 or few:
                dots += list(zip(px[begin:end], py[begin:end], strict=True))
        dense = " dense" if len(y) > DENSE else ""
        shapes: list[Any] = [
            element(
                "path",
                class_=f"line k{stroke.colour}{dense}",
                d="".join(parts),
                stroke_dasharray=stroke.dash,
            )
        ]
        shapes += [element("circle", class_=f"f{stroke.colour}", cx=a, cy=b, r=2) for a, b in dots]
        for place in px[~np.isfinite(y)]:
            at, top = float(place), frame.top + 4
            cross = f"M{number(at - 3)} {number(top - 3)}l6 6m0-6l-6 6"
            shapes.append(element("path", element("title", "not finite"), class_="wrong", d=cross))
        return element("g", shapes, data_series=series.name)


MIDDLE = {"text_anchor": "middle"}


def around(values: np.ndarray, space: float = 0.0) -> tuple[float, float]:
    """From the smallest to the largest with some space; never of no width.

    >>> around(np.array([2.0])), around(np.array([0.0, 10.0]), 0.1)
    ((1.0, 3.0), (-1.0, 11.0))
    """
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-12 * max(abs(high), abs(low)):
        half = abs(low) / 2 or 1.0
        return low - half, high + half
    return low - space * (high - low), high + space * (high - low)


def described(series: Series, axis: Axis) -> str:
    x, y = series.points
    finite = y[np.isfinite(y)]
    if not len(finite):
        return f"{series.name}: no finite value"
    where = f"{axis.title} {plain(x[0] / axis.divide)} to {plain(x[-1] / axis.divide)}"
    low, high, last = (short(float(v)) for v in (finite.min(), finite.max(), finite[-1]))
    lost = len(y) - len(finite)
    gaps = f", {lost} not finite" if lost else ""
    return (
        f"{wide(series.name, 80)}: {len(y)} value(s), {where},"
        f" smallest {low}, largest {high}, last {last}{gaps}"
    )


def seconds_axis(longest: float) -> Axis:
    """An axis of time in the unit that suits its longest value, in seconds.

    >>> seconds_axis(7200.0)
    Axis(title='minutes', divide=60.0, suffix='')
    """
    for unit, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if math.isfinite(longest) and longest >= 3 * unit:
            return Axis(name, unit)
    return Axis("seconds")
