"""Heat maps of loads: how far each is from an even share, in a few levels, small as text."""

# R rows, C columns.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jscale.pictures.markup import Markup, element
from jscale.pictures.picture import Drawing, Picture

BOUNDS = (0.01, 0.5, 0.8, 1.25, 2.0, 4.0)  # of a load over an even share, between levels
EVEN = 3  # the level that is left blank
# The colour of a level and how strong it is: from hardly any load to far too much.
LEVELS = ((6, 1.0), (0, 0.8), (0, 0.35), (None, 0.0), (1, 0.35), (1, 0.7), (1, 1.0))
WORDS = ("below 0.01", "to 0.5", "to 0.8", "to 1.25", "to 2", "to 4", "more")
LEFT, TOP, BELOW = 26, 20, 16


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Loads over an even share, 1 where it is even; NaN is nothing. Width and height in pixels,
    those of the map with its title and the names of its first and last rows and columns."""

    title: str
    values: Float[np.ndarray, "R C"]
    rows: tuple[str, str]
    columns: tuple[str, str]
    width: int = 300
    height: int = 140

    def picture(self) -> Picture:
        """The map with its words for those who cannot see it."""
        known = self.values[np.isfinite(self.values)]
        size = "×".join(map(str, self.values.shape))
        words = f"{size} loads" + (
            f", from {known.min():.3g} to {known.max():.3g} of an even share" if len(known) else ""
        )
        return Picture(self.drawing(), self.title, words)

    def drawing(self) -> Drawing:
        """Its shapes."""
        rows, columns = self.values.shape
        inside = {"x": LEFT, "y": TOP, "width": self.width - LEFT, "height": self._tall}
        cells = element(
            "svg",
            element("g", cells_of(self.values), transform="translate(0 .5)"),
            **inside,
            viewBox=f"0 0 {columns} {rows}",
            preserveAspectRatio="none",
            shape_rendering="crispEdges",
        )
        paper = element("rect", class_="whole", **inside)
        title = element("text", self.title, class_="title", x=0, y=11)
        whole = Markup(title + paper + cells + self._names())
        return Drawing(whole, self.width, self.height)

    @property
    def _tall(self) -> int:
        return self.height - TOP - BELOW

    def _names(self) -> Markup:
        end, low = {"text_anchor": "end"}, TOP + self._tall
        word = lambda text, **where: element("text", text, class_="soft", **where)
        first, last = self.columns
        shapes = [
            word(self.rows[0], x=LEFT - 4, y=TOP + 9, **end),
            word(self.rows[1], x=LEFT - 4, y=low - 1, **end) if self._tall > 24 else "",
            word(first, x=LEFT, y=low + 12),
            word(last, x=self.width, y=low + 12, **end) if last != first else "",
        ]
        return Markup("".join(shapes))


def levels_of(values: Float[np.ndarray, "R C"]) -> np.ndarray:
    """The level of each load; that which is left blank for NaN.

    >>> levels_of(np.array([[0.0, 1.0, 3.0, np.nan]])).tolist()
    [[0, 3, 5, 3]]
    """
    found = np.digitize(values, BOUNDS)
    return np.where(np.isnan(values), EVEN, found)


def cells_of(values: Float[np.ndarray, "R C"]) -> Markup:
    """A path for each level, of the runs of cells in a row that have it: units of one cell."""
    levels = levels_of(values)
    runs: dict[int, list[str]] = {}
    for y, row in enumerate(levels):
        edges = np.flatnonzero(np.diff(row)) + 1
        for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(row)], strict=True):
            if row[begin] != EVEN:
                runs.setdefault(int(row[begin]), []).append(f"M{begin} {y}h{end - begin}")
    made = [
        element(
            "path", class_=f"k{colour}", d="".join(runs[level]), fill="none", stroke_opacity=strong
        )
        for level, (colour, strong) in enumerate(LEVELS)
        if level in runs
    ]
    return Markup("".join(made))


def keys() -> list[tuple[Markup, str]]:
    """What each level looks like, and its loads in words."""
    made: list[tuple[Markup, str]] = []
    for (colour, strong), words in zip(LEVELS, WORDS, strict=True):
        look = {"class_": "whole"} if colour is None else {"class_": f"f{colour}"}
        more = {} if colour is None else {"fill_opacity": strong}
        square = element("rect", width=10, height=10, **look, **more)
        kind = "picture swatch"
        drawn = element("svg", square, class_=kind, viewBox="0 0 10 10", aria_hidden="true")
        made.append((drawn, words))
    return made
