"""The data part of a recipe, and what it opens to: a tokenizer and two streams of batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jscale.data.cache import Progress, TokenCache, cache_folder, ignore_progress, open_tokens
from jscale.data.dataset import Opened, check_data
from jscale.data.heldout import training_documents
from jscale.data.mixture import Mixture
from jscale.data.packing import Packing, Split
from jscale.data.source import Report, Source, digest_values, documents_with_text
from jscale.data.stream import PackedRows, TokenStream, text_shapes
from jscale.data.tokenizers import Tokenizer, TokenizerSource, Training, tokenizer_of
from jscale.errors import DataError

TOLD = 1 << 20  # bytes between two calls of the progress callback
FORMAT = 1  # of the order of batches: raised when the same settings would give other batches


@dataclass(frozen=True)
class TextData:
    """Text to train on: where it comes from, how it is tokenized, and the shape of a batch.

    `length` is the places of a row, `batch` the rows of a global batch, `heldout` the share of the
    documents kept for evaluation (0 for none), `workers` the processes that read ahead (0: threads
    of this one). `cache` defaults to ~/.cache/jscale.
    """

    source: Source | Mixture  # where the text is
    tokenizer: TokenizerSource  # which tokens it is made of
    length: int  # places of a row
    batch: int  # rows of a global batch
    heldout: float = 0.01  # share of the documents kept for evaluation; 0: none
    packing: Packing = Split()  # how documents are laid into rows
    shuffle: bool = True  # whether rows come in a new order in each epoch
    cache: str | None = None  # folder of tokens and tokenizers; None: ~/.cache/jscale
    workers: int = 0  # processes that read ahead; 0: threads of this one

    def __post_init__(self) -> None:
        parts = {
            "source": ((Source, Mixture), "a source, such as TextFiles(('books/*.txt',))"),
            "tokenizer": (TokenizerSource, "a tokenizer, such as BytePairs(4096)"),
            "packing": (Packing, "a packing, such as Split()"),
        }
        check_data(self, parts, ("length", "batch"))

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        return text_shapes(self.batch, self.length)

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources, one or those of the mixture."""
        if isinstance(self.source, Mixture):
            return tuple(source for source, _ in self.source.parts)
        return (self.source,)

    def open(self, seed: int, progress: Progress | None = None) -> "Corpus":
        """Tokenize what is not yet in the cache, and return the streams of this seed.

        Raises `DataError`: one sentence about the file, line, column or setting at fault.
        """
        tell = progress or ignore_progress
        folder = cache_folder(self.cache)
        digests = tuple(source.digest() for source in self.parts)
        tokenizer = self._load_tokenizer(folder, digests, tell)
        caches = tuple(
            open_tokens(source, digest, tokenizer, folder, tell)
            for source, digest in zip(self.parts, digests, strict=True)
        )
        train = self._stream("train", caches, tokenizer.pad, seed)
        heldout = self._stream("heldout", caches, tokenizer.pad, seed) if self.heldout else None
        return Corpus(self, tokenizer, train, heldout, caches)

    def _load_tokenizer(
        self, folder: Path, digests: tuple[str, ...], progress: Progress
    ) -> Tokenizer:
        total = sum(source.size() for source in self.parts)
        training = Training(
            documents=partial(self._training_documents, total, progress),
            size=total,
            key=digest_values(digests, self.heldout),
            folder=folder / "tokenizers",
        )
        return tokenizer_of(self.tokenizer, training)

    def _training_documents(self, total: int, progress: Progress) -> Iterator[str]:
        done = told = 0
        for source in self.parts:
            report = Report()
            texts = documents_with_text(source, report)
            for text in training_documents(texts, self.heldout):
                if done + report.read - told >= TOLD:
                    told = done + report.read
                    progress(min(told, total), total, "training the tokenizer")
                yield text
            done += report.read

    def _stream(
        self, side: str, caches: tuple[TokenCache, ...], pad: int, seed: int
    ) -> TokenStream:
        names = [type(source).__name__ for source in self.parts]
        rows = tuple(
            PackedRows(cache, side, self.heldout, self.packing, self.length, pad, name)
            for cache, name in zip(caches, names, strict=True)
        )
        for part in rows:
            if not len(part):
                raise DataError(f"the {side} documents of {part.name} hold no pair of tokens")
        shares = self.source.shares() if isinstance(self.source, Mixture) else (1,)
        shuffle = self.shuffle and side == "train"
        settings = {
            "format": FORMAT, "side": side, "caches": [cache.key for cache in caches],
            "shares": shares, "length": self.length, "batch": self.batch,
            "heldout": self.heldout, "packing": repr(self.packing),
            "seed": seed if shuffle else None,
        }  # fmt: skip
        fingerprint = digest_values(settings)
        return TokenStream(rows, shares, self.batch, shuffle, seed, fingerprint)


@dataclass(frozen=True, eq=False)
class Corpus(Opened):
    """An opened `TextData`."""

    config: TextData
    caches: tuple[TokenCache, ...]

    def summary(self) -> dict[str, Any]:
        """Counts to show, as plain data: what is there, what was skipped, what was repaired."""
        return {
            **self.counts(),
            "sources": [self._describe_source(i) for i in range(len(self.caches))],
            "notices": [notice for cache in self.caches for notice in cache.notices],
        }

    def _describe_source(self, index: int) -> dict[str, Any]:
        report = self.caches[index].report
        counts = ("documents", "empty", "bad", "bytes", "tokens")
        return {
            "kind": type(self.config.parts[index]).__name__,
            "share": self.train.shares[index] / sum(self.train.shares),
            **{name: report[name] for name in counts},
            "bad_lines": report["bad_lines"][:5],
            "cache": str(self.caches[index].folder),
        }
