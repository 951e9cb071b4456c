"""The data part of a recipe whose rows are images and, after them, what is to be said of them.

Legend: Q rows read together, T places of a row, H height, W width, C channels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64, Shaped

from jscale.data.captioned import CaptionedImages, CaptionRows
from jscale.errors import ConfigError, DataError


@dataclass(frozen=True)
class ShownImages(CaptionedImages):
    """Images with their captions as a decoder reads them: image tokens, then bos, caption and eos.

    The decoder is to predict what comes after bos; rows have `places + length` places.

    Raises:
        ConfigError: a size below 1, or a share that is not from 0 to below 1.
    """

    image_token: int = 0  # the model's, of no other meaning: LLaVA(image_token=…)
    places: int = 1  # how many of them stand for an image: LLaVA(…).places

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.places < 1 or self.image_token < 0:
            raise ConfigError(
                f"ShownImages needs places of 1 or more and an image_token of 0 or more, not"
                f" {self.places} and {self.image_token}"
            )

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        return shown_shapes(self.batch, self.places + self.length, self.source.shape)

    @property
    def told(self) -> dict[str, Any]:
        """Further settings that decide what rows hold."""
        return {"image_token": self.image_token, "places": self.places}

    def rows(
        self, tokens: tuple[tuple[int, ...], ...], numbers: Int64[np.ndarray, " captions"], pad: int
    ) -> "ShownRows":
        """The rows of the captions of these numbers.

        Raises:
            DataError: a caption has the image token in it.
        """
        for caption, row in zip(self.source.captions, tokens, strict=True):
            if self.image_token in row:
                raise DataError(
                    f"the caption {caption!r} has the token {self.image_token}: data.image_token"
                    " must be one that no text has"
                )
        shown = self.image_token, self.places
        return ShownRows(self.source, tokens, numbers, self.length, pad, shown)


@dataclass(frozen=True, eq=False)
class ShownRows(CaptionRows):
    """The rows of one side of a source, read at random: one image, its tokens, its caption."""

    shown: tuple[int, int]  # the image token, and how many stand for an image

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of so many rows."""
        return shown_shapes(rows, self.shown[1] + self.length, self.source.shape)

    def read(self, rows: Int64[np.ndarray, " Q"]) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """These rows as arrays, in this order."""
        read, (token, places) = super().read(rows), self.shown
        caption, there = read["inputs"], read["segments"]
        wide = lambda x, before, after: np.pad(
            np.pad(x, ((0, 0), (places, 0)), constant_values=before),
            ((0, 0), (0, 1)),
            constant_values=after,
        )
        text, seen = wide(caption, token, self.pad), wide(there, 1, 0)
        # Neither image tokens nor the beginning of a text are to be guessed.
        guessed = wide(there, 0, 0)[:, 1:].astype(np.float32)
        guessed[:, places - 1] = 0
        return {
            "images": read["images"],
            "inputs": text[:, :-1],
            "targets": text[:, 1:],
            "weights": guessed,
            "segments": seen[:, :-1],
        }


def shown_shapes(
    rows: int, length: int, image: tuple[int, int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of so many rows: images [Q, H, W, C], and text of T places each."""
    like = jax.ShapeDtypeStruct
    text = like((rows, length), np.int32)
    return {
        "images": like((rows, *image), np.float32),
        "inputs": text,
        "targets": text,
        "weights": like((rows, length), np.float32),
        "segments": text,
    }
