"""A picture that notebooks show and that can be saved: an SVG with all that it needs inside."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jscale.errors import ConfigError
from jscale.pictures.markup import Markup, element

STYLE = (Path(__file__).parent / "picture.css").read_text(encoding="utf-8")
SPACE = 12  # around a picture that stands alone


class Drawing(NamedTuple):
    """Shapes of a known size, to be put into a picture or beside other drawings. Units: pixels."""

    shapes: Markup
    width: float | int
    height: float | int


@dataclass(frozen=True)
class Picture:
    """A drawing under a title; `description` is what a person who cannot see it is told."""

    drawing: Drawing
    title: str
    description: str

    def __repr__(self) -> str:
        return f"<Picture: {self.title}>"

    def svg(self) -> Markup:
        """The picture for a page that brings the style itself."""
        return framed(self, 0, None)

    def alone(self) -> Markup:
        """The picture with its style and a paper of its own, in light colours."""
        return framed(self, SPACE, STYLE)

    def _repr_svg_(self) -> str:
        return self.alone()

    def _repr_html_(self) -> str:
        return self.alone()

    def save(self, path: str | Path) -> Path:
        """Write the picture as an SVG file.

        Raises:
            ConfigError: it cannot be written there, or the name does not end in .svg.
        """
        path = Path(path)
        if path.suffix != ".svg":
            raise ConfigError(
                f"a picture is saved as SVG: give a name that ends in .svg, not {path}"
            )
        try:
            path.write_text(self.alone() + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        return path


def framed(picture: Picture, space: float | int, style: str | None) -> Markup:
    shapes, width, height = picture.drawing
    whole, tall = width + 2 * space, height + 2 * space
    paper = element("rect", class_="paper", x=-space, y=-space, width=whole, height=tall, rx=6)
    return element(
        "svg",
        element("title", picture.title),
        element("desc", picture.description),
        (element("style", Markup(style)), paper) if style else None,
        shapes,
        xmlns="http://www.w3.org/2000/svg",
        class_="picture",
        viewBox=f"{-space:g} {-space:g} {whole:g} {tall:g}",
        width=whole,
        height=tall,
        role="img",
    )


def beside(drawings: list[Drawing], gap: float | int, down: bool = False) -> Drawing:
    """Drawings in a row, or one below the other."""
    shapes, at, across = [], 0.0, 0.0
    for drawing in drawings:
        where = f"translate(0 {at:g})" if down else f"translate({at:g} 0)"
        shapes.append(element("g", drawing.shapes, transform=where) if at else drawing.shapes)
        at += (drawing.height if down else drawing.width) + gap
        across = max(across, drawing.width if down else drawing.height)
    along = max(at - gap, 0.0)
    return Drawing(Markup("".join(shapes)), *((across, along) if down else (along, across)))
