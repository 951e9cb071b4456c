"""The data part of a recipe whose rows are images of one of several classes.

Legend: Q rows read together, H height, W width, C channels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32, Int64, Shaped

from jscale.data.captioned import CaptionedImages, CaptionRows
from jscale.data.images import SHAPES
from jscale.errors import ConfigError, DataError


@dataclass(frozen=True)
class LabelledImages(CaptionedImages):
    """Images with the number of their class: the one of `classes` that their caption names.

    Held out are captions and all their images, so that no held-out image has been seen.

    Raises:
        ConfigError: fewer than two classes, a size below 1, or a share that is none.
    """

    classes: tuple[str, ...] = SHAPES  # words, of which a caption has one

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ConfigError(
                f"LabelledImages needs two classes or more, each once: {self.classes}"
            )

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        return labelled_shapes(self.batch, self.source.shape)

    @property
    def told(self) -> dict[str, Any]:
        """Further settings that decide what rows hold."""
        return {"classes": self.classes}

    def rows(
        self, tokens: tuple[tuple[int, ...], ...], numbers: Int64[np.ndarray, " captions"], pad: int
    ) -> "LabelledRows":
        """The rows of the captions of these numbers.

        Raises:
            DataError: a caption names no class, or several.
        """
        return LabelledRows(self.source, tokens, numbers, self.length, pad, self._labels)

    @cached_property
    def _labels(self) -> tuple[int, ...]:
        """The class of each caption."""
        out = []
        for caption in self.source.captions:
            named = [n for n, name in enumerate(self.classes) if name in caption.split()]
            if len(named) != 1:
                raise DataError(
                    f"the caption {caption!r} names {len(named)} of the classes"
                    f" {', '.join(self.classes)}, and must name one"
                )
            out += named
        return tuple(out)


@dataclass(frozen=True, eq=False)
class LabelledRows(CaptionRows):
    """The rows of one side of a source, read at random: one image and its class each."""

    labels: tuple[int, ...]  # of all captions

    @cached_property
    def _classes(self) -> Int32[np.ndarray, " captions"]:
        return np.array([self.labels[i] for i in self.numbers.tolist()], np.int32)

    def tokens(self) -> int:
        """What is to be told in an epoch: one class of each image."""
        return len(self)

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of so many rows."""
        return labelled_shapes(rows, self.source.shape)

    def read(self, rows: Int64[np.ndarray, " Q"]) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """These rows as arrays, in this order."""
        images = super().read(rows)["images"]
        return {"images": images, "labels": self._classes[rows % len(self.numbers)]}


def labelled_shapes(rows: int, image: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of so many rows: images [Q, H, W, C] float32 and labels [Q] int32."""
    images = jax.ShapeDtypeStruct((rows, *image), np.float32)
    return {"images": images, "labels": jax.ShapeDtypeStruct((rows,), np.int32)}
