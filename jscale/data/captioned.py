"""The data part of a recipe whose rows are images with captions.

Legend: Q rows read together, T places of a caption, H height, W width, C channels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32, Int64, Shaped

from jscale.data.cache import Progress, cache_folder
from jscale.data.dataset import Opened, check_data
from jscale.data.heldout import document_hash, held_out, training_documents
from jscale.data.images import ImageSource
from jscale.data.source import digest_values
from jscale.data.stream import TokenStream
from jscale.data.tokenizers import Tokenizer, TokenizerSource, Training, tokenizer_of
from jscale.errors import DataError

FORMAT = 1  # of the order of batches: raised when the same settings would give other batches


@dataclass(frozen=True)
class CaptionedImages:
    """Images with their captions: batches of images, inputs and segments.

    A caption stands in a row of its own, bos and eos about it, and padding (segment 0) after it.
    All images of a caption are on one side: those held out show what no training image does.

    Raises:
        ConfigError: a size below 1, or a share that is not from 0 to below 1.
    """

    source: ImageSource  # where images and captions come from: Shapes()
    tokenizer: TokenizerSource  # which tokens captions are made of
    length: int  # places of a caption
    batch: int  # rows of a global batch
    heldout: float = 0.1  # share of the captions kept for evaluation; 0: none
    shuffle: bool = True  # whether rows come in a new order in each epoch
    cache: str | None = None  # folder of tokenizers; None: ~/.cache/jscale
    workers: int = 0  # processes that read ahead; 0: threads of this one

    def __post_init__(self) -> None:
        parts = {
            "source": (ImageSource, "a source of images, such as Shapes()"),
            "tokenizer": (TokenizerSource, "a tokenizer, such as BytePairs(320)"),
        }
        check_data(self, parts, ("length", "batch"))

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        return captioned_shapes(self.batch, self.length, self.source.shape)

    @property
    def told(self) -> dict[str, Any]:
        """Further settings that decide what rows hold."""
        return {}

    def open(self, seed: int, progress: Progress | None = None) -> "Captioned":
        """Tokenize the captions, and return the streams of this seed.

        Raises:
            DataError: there are no captions or no images of them, a caption is longer than a row,
                or nothing can be held out.
        """
        captions = self.source.captions
        if not captions or self.source.each < 1:
            what = "images of its captions" if captions else "captions"
            raise DataError(f"data.source has no {what}: {self.source!r:.200}")
        training = Training(
            documents=lambda: training_documents(captions, self.heldout),
            size=sum(len(caption.encode()) for caption in captions),
            key=digest_values(captions, self.heldout),
            folder=cache_folder(self.cache) / "tokenizers",
        )
        tokenizer = tokenizer_of(self.tokenizer, training)
        tokens = self._tokens(tokenizer, captions)
        hashes = np.array([document_hash(text) for text in captions], np.uint64)
        out = held_out(hashes, self.heldout, type(self.source).__name__, "caption")
        rows = {
            side: self.rows(tokens, np.flatnonzero(mine), tokenizer.pad)
            for side, mine in (("train", ~out), ("heldout", out))
        }
        train = self._stream("train", rows["train"], tokenizer, seed)
        heldout = self._stream("heldout", rows["heldout"], tokenizer, seed)
        return Captioned(self, tokenizer, train, heldout if self.heldout else None)

    def rows(
        self, tokens: tuple[tuple[int, ...], ...], numbers: Int64[np.ndarray, " captions"], pad: int
    ) -> "CaptionRows":
        """The rows of the captions of these numbers; `tokens` are those of all captions."""
        return CaptionRows(self.source, tokens, numbers, self.length, pad)

    def _tokens(
        self, tokenizer: Tokenizer, captions: tuple[str, ...]
    ) -> tuple[tuple[int, ...], ...]:
        rows = tokenizer.encode_documents(captions)
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        if len(rows[longest]) > self.length:
            raise DataError(
                f"the caption {captions[longest]!r} has {len(rows[longest])} tokens: data.length"
                f" must be at least that, not {self.length}"
            )
        return tuple(map(tuple, rows))

    def _stream(
        self, side: str, rows: "CaptionRows", tokenizer: Tokenizer, seed: int
    ) -> TokenStream:
        shuffle = self.shuffle and side == "train"
        settings = {
            "format": FORMAT, "side": side, "source": self.source.digest(),
            "tokenizer": tokenizer.fingerprint, "length": self.length, "batch": self.batch,
            "heldout": self.heldout, "seed": seed if shuffle else None, **self.told,
        }  # fmt: skip
        return TokenStream((rows,), (1,), self.batch, shuffle, seed, digest_values(settings))


class Captioned(Opened):
    """An opened `CaptionedImages`."""

    def summary(self) -> dict[str, Any]:
        """Counts to show, as plain data."""
        return {**self.counts(), "notices": []}


@dataclass(frozen=True, eq=False)
class CaptionRows:
    """The rows of one side of a source, read at random: one image and its caption each.

    Row r is image r // n of caption r mod n, of the n captions of the side.
    """

    source: ImageSource
    captions: tuple[tuple[int, ...], ...]  # the tokens of all of them
    numbers: Int64[np.ndarray, " captions"]  # of this side, by their place in the source
    length: int
    pad: int

    @cached_property
    def _laid(self) -> Int32[np.ndarray, "2 captions T"]:
        """The tokens of all captions in rows, and their segments."""
        out = np.zeros((2, len(self.captions), self.length), np.int32)
        out[0] = self.pad
        for number, tokens in enumerate(self.captions):
            out[0, number, : len(tokens)], out[1, number, : len(tokens)] = tokens, 1
        return out

    def __len__(self) -> int:
        return len(self.numbers) * self.source.each

    def count(self) -> int:
        """How many captions are in them."""
        return len(self.numbers)

    def tokens(self) -> int:
        """Tokens of captions of an epoch."""
        return sum(len(self.captions[i]) for i in self.numbers.tolist()) * self.source.each

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of so many rows."""
        return captioned_shapes(rows, self.length, self.source.shape)

    def read(self, rows: Int64[np.ndarray, " Q"]) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        """These rows as arrays, in this order."""
        number, which = np.divmod(rows, len(self.numbers))
        caption = self.numbers[which]
        pairs = zip(caption.tolist(), number.tolist(), strict=True)
        images = [self.source.draw(*pair) for pair in pairs]
        inputs, segments = self._laid[:, caption]
        images = np.stack(images) if images else np.zeros((0, *self.source.shape), np.float32)
        return {"images": images, "inputs": inputs, "segments": segments}


def captioned_shapes(
    rows: int, length: int, image: tuple[int, int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of so many rows: images [Q, H, W, C] float32, inputs and segments [Q, T] int32."""
    text = jax.ShapeDtypeStruct((rows, length), np.int32)
    images = jax.ShapeDtypeStruct((rows, *image), np.float32)
    return {"images": images, "inputs": text, "segments": text}
