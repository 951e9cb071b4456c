"""Images with captions, and a source that draws them: coloured shapes at places.

Legend: H height, W width, C channels.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from jscale.data.source import digest_values
from jscale.errors import ConfigError


@runtime_checkable
class ImageSource(Protocol):
    """Captions, and so many images of each; image n of a caption is always the same."""

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions, each once."""
        ...

    @property
    def each(self) -> int:
        """How many images every caption has."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        ...

    def draw(self, caption: int, number: int) -> Float32[np.ndarray, "H W C"]:
        """Image `number` of a caption; numbers from −1 to 1."""
        ...

    def digest(self) -> str:
        """A key of the captions and images."""
        ...


COLOURS = {
    "red": (1.0, -0.9, -0.9),
    "green": (-0.9, 0.8, -0.9),
    "blue": (-0.8, -0.8, 1.0),
    "yellow": (1.0, 1.0, -0.9),
    "purple": (0.5, -0.9, 0.7),
    "white": (1.0, 1.0, 1.0),
}
SHAPES = ("square", "circle", "triangle", "cross")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIZES = ("small", "large")
SMALLEST = 18  # pixels: below, the arms of a small cross may fall between two


@dataclass(frozen=True)
class Shapes:
    """Generated images of one shape each: "a small red square at the top left".

    There are 432 captions: six colours, four shapes, two sizes, nine places. The images of one
    differ in where exactly the shape stands, how large it is, and in noise.

    Raises:
        ConfigError: an image too small to tell shapes apart, or fewer than one of each.
    """

    image: int = 24  # height and width
    each: int = 64  # images of each caption
    noise: float = 0.1  # deviation of what is added to every number

    def __post_init__(self) -> None:
        if self.image < SMALLEST:
            raise ConfigError(
                f"Shapes: image={self.image} must be at least {SMALLEST} to tell shapes apart"
            )
        if self.each < 1:
            raise ConfigError(f"Shapes: each={self.each} must be at least 1")
        if not 0 <= self.noise <= 1:
            raise ConfigError(f"Shapes: noise={self.noise} must be from 0 to 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.image, self.image, 3

    @cached_property
    def _kinds(self) -> tuple[tuple[str, str, str, str, str], ...]:
        return tuple(product(SIZES, COLOURS, SHAPES, ROWS, COLUMNS))

    @cached_property
    def _captions(self) -> tuple[str, ...]:
        text = "a {} {} {} at the {} {}"
        return tuple(text.format(*kind) for kind in self._kinds)

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions, each once."""
        return self._captions

    def draw(self, caption: int, number: int) -> Float32[np.ndarray, "H W C"]:
        """Image `number` of a caption; numbers from −1 to 1, but for the noise."""
        size, colour, shape, row, column = self._kinds[caption]
        rng = np.random.default_rng((caption, number, self.image))
        third = self.image / 3
        radius = third * (0.42 if size == "large" else 0.28) * rng.uniform(0.9, 1.1)
        at = np.array([ROWS.index(row), COLUMNS.index(column)]) + 0.5 + rng.uniform(-0.1, 0.1, 2)
        y, x = np.mgrid[: self.image, : self.image] + 0.5 - (at * third)[:, None, None]
        out = np.full(self.shape, -0.7, np.float32)
        out[_inside(shape, y / radius, x / radius)] = COLOURS[colour]
        return out + np.float32(self.noise) * rng.standard_normal(self.shape, np.float32)

    def digest(self) -> str:
        """A key of the settings."""
        return digest_values("Shapes 1", self.image, self.each, self.noise)


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which places are inside a shape of radius 1."""
    if shape == "circle":
        return y**2 + x**2 <= 1
    if shape == "triangle":
        return (np.abs(x) <= (y + 1) / 2) & (y <= 1)
    within = np.maximum(np.abs(x), np.abs(y)) <= 1
    if shape == "cross":
        return within & (np.minimum(np.abs(x), np.abs(y)) <= 0.4)
    return within
