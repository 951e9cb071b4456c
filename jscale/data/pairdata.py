"""The data part of a recipe that learns from pairs, and what it opens to."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from jscale.data.cache import Progress, TokenCache, cache_folder, ignore_progress, open_tokens
from jscale.data.corpus import TOLD
from jscale.data.dataset import Opened, check_data
from jscale.data.heldout import training_documents
from jscale.data.pairrows import PairRows, Rowing, pair_shapes
from jscale.data.pairs import InTurn, Pair, PairSource
from jscale.data.source import Report, digest_values
from jscale.data.stream import TokenStream
from jscale.data.tokenizers import Tokenizer, TokenizerSource, Training, tokenizer_of
from jscale.errors import ConfigError, DataError

FORMAT = 1  # of the order of batches: raised when the same settings would give other batches


@dataclass(frozen=True)
class PairData:
    """Pairs to train on: texts that are given, and what is to be made of each, as in translation.

    `GivenSource` learns from them. Source and target are tokenized alike, and no text is ever cut.
    """

    source: PairSource  # where the pairs are
    tokenizer: TokenizerSource  # which tokens both texts are made of
    length: int  # places of a row of targets
    batch: int  # rows of a global batch
    source_length: int | None = None  # places of a row of sources; None: length
    packing: Rowing = "packed"  # pairs in a row: packed, as have room; padded, one
    long: Literal["error", "skip"] = "error"  # what a pair is that fits into no row
    heldout: float = 0.01  # share of the pairs kept for evaluation; 0: none
    shuffle: bool = True  # whether rows come in a new order in each epoch
    cache: str | None = None  # folder of tokens and tokenizers; None: ~/.cache/jscale
    workers: int = 0  # processes that read ahead; 0: threads of this one

    def __post_init__(self) -> None:
        parts = {
            "source": (PairSource, "a source of pairs, such as JsonPairs(('pairs.jsonl',))"),
            "tokenizer": (TokenizerSource, "a tokenizer, such as BytePairs(4096)"),
        }
        check_data(self, parts, ("length", "batch", "source_length"))
        for name, choices in (("packing", ("packed", "padded")), ("long", ("error", "skip"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"PairData: {name} is {' or '.join(map(repr, choices))}")

    @property
    def sizes(self) -> tuple[int, int]:
        """Places of a row of sources, and of one of targets."""
        source = self.length if self.source_length is None else self.source_length
        return source, self.length

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        return pair_shapes(self.batch, self.sizes)

    @property
    def parts(self) -> tuple[PairSource]:
        """What is read."""
        return (self.source,)

    def open(self, seed: int, progress: Progress | None = None) -> "PairCorpus":
        """Tokenize what is not yet in the cache, and return the streams of this seed.

        Raises `DataError`: one sentence about the file, line, field, pair or setting at fault.
        """
        tell = progress or ignore_progress
        folder = cache_folder(self.cache)
        texts = InTurn(self.source)
        digest = texts.digest()
        tokenizer = self._load_tokenizer(folder, digest, tell)
        cache = open_tokens(texts, digest, tokenizer, folder, tell)
        train = self._stream("train", cache, tokenizer, seed)
        heldout = self._stream("heldout", cache, tokenizer, seed) if self.heldout else None
        return PairCorpus(self, tokenizer, train, heldout, cache)

    def _load_tokenizer(self, folder: Path, digest: str, progress: Progress) -> Tokenizer:
        training = Training(
            documents=partial(self._training_texts, progress),
            size=self.source.size(),
            key=digest_values(digest, self.heldout),
            folder=folder / "tokenizers",
        )
        return tokenizer_of(self.tokenizer, training)

    def _training_texts(self, progress: Progress) -> Iterator[str]:
        report, told, total = Report(), 0, self.source.size()
        pairs = self.source.pairs(report)
        for pair in training_documents(pairs, self.heldout, source_of):
            if report.read - told >= TOLD:
                told = report.read
                progress(min(told, total), total, "training the tokenizer")
            yield from pair

    def _stream(self, side: str, cache: TokenCache, tokenizer: Tokenizer, seed: int) -> TokenStream:
        rows = PairRows(
            *(cache, side, self.heldout, self.packing, self.sizes, self.long == "skip"),
            start=tokenizer.start,
            begun=tokenizer.bos is not None,
            pad=tokenizer.pad,
            name=type(self.source).__name__,
        )
        if not len(rows):
            raise DataError(f"none of the {side} pairs of {rows.name} fits into a row")
        shuffle = self.shuffle and side == "train"
        settings = {
            "format": FORMAT, "kind": "pairs", "side": side, "cache": cache.key,
            "sizes": self.sizes, "batch": self.batch, "heldout": self.heldout,
            "packing": self.packing, "long": self.long, "seed": seed if shuffle else None,
        }  # fmt: skip
        fingerprint = digest_values(settings)
        return TokenStream((rows,), (1,), self.batch, shuffle, seed, fingerprint)


def source_of(pair: Pair) -> str:
    """That by which a pair is held out."""
    return pair[0]


@dataclass(frozen=True, eq=False)
class PairCorpus(Opened):
    """An opened `PairData`."""

    config: PairData
    cache: TokenCache

    @property
    def skipped(self) -> int:
        """How many pairs fit into no row, and are left out."""
        rows = (part for stream in self.sides.values() for part in stream.parts)
        return sum(part.skipped for part in rows if isinstance(part, PairRows))

    def summary(self) -> dict[str, Any]:
        """Counts to show, as plain data: what is there, what was skipped, what was repaired."""
        report, skipped = self.cache.report, self.skipped
        pairs = report["documents"] // 2
        left_out = f"{skipped} of {pairs} pairs fit into no row of {self.config.sizes[0]} and"
        left_out += f" {self.config.sizes[1]} places and are left out"
        return {
            **self.counts(),
            "sources": [
                {
                    "kind": type(self.config.source).__name__,
                    "share": 1.0,
                    "documents": pairs,
                    **{name: report[name] for name in ("empty", "bad", "bytes", "tokens")},
                    "skipped": skipped,
                    "bad_lines": report["bad_lines"][:5],
                    "cache": str(self.cache.folder),
                }
            ],
            "notices": [*self.cache.notices, *([left_out] if skipped else [])],
        }
