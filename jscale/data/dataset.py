"""What a recipe learns from, whatever it is made of: text, pairs of texts, or another kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax

from jscale.data.cache import Progress
from jscale.data.feed import EvaluationStream
from jscale.data.source import digest_values
from jscale.data.stream import Stream, TokenStream
from jscale.data.tokenizers import Tokenizer, TokenizerSource
from jscale.errors import ConfigError


@runtime_checkable
class Dataset(Protocol):
    """Data opened: the tokenizer, and the streams that training and evaluation read."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back."""
        ...

    @property
    def train(self) -> Stream:
        """Endless batches."""
        ...

    @property
    def heldout(self) -> EvaluationStream | None:
        """Each row that training never sees, once; None where nothing is held out."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when any batch of training or evaluation would change."""
        ...

    def summary(self) -> dict[str, Any]:
        """What is there, as plain data; `notices` are sentences for people."""
        ...


@runtime_checkable
class Data(Protocol):
    """What a run learns from: the shape of its batches, known before anything is read."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # it is a frozen dataclass

    @property
    def tokenizer(self) -> TokenizerSource:
        """Which tokens text is made of."""
        ...

    @property
    def length(self) -> int:
        """Places of a row of what a model is to predict."""
        ...

    @property
    def batch(self) -> int:
        """Rows of a global batch."""
        ...

    @property
    def heldout(self) -> float:
        """The share that is kept for evaluation."""
        ...

    @property
    def workers(self) -> int:
        """Processes that read ahead; 0: threads of this one."""
        ...

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Name, global shape and dtype of each array of a batch."""
        ...

    def open(self, seed: int, progress: Progress | None = None) -> Dataset:
        """The streams of this seed; raises `DataError` where they cannot be had."""
        ...


def check_data(data: Any, parts: Mapping[str, tuple[Any, str]], counts: tuple[str, ...]) -> None:
    """Check the fields that data of every kind have.

    `parts` says of a field which types it may have, and what one is to be told who gives another;
    `counts` are fields that must be 1 or more, or None. `workers` and `heldout` are checked of all.

    Raises:
        ConfigError: a part is of another kind, a number is too small or no share.
    """
    kind = type(data).__name__
    for name, (wanted, example) in parts.items():
        if not isinstance(part := getattr(data, name), wanted):
            raise ConfigError(f"{kind}: {part!r:.80} is not {example}")
    for name, bound in (*((name, 1) for name in counts), ("workers", 0)):
        number = getattr(data, name)
        if number is not None and number < bound:
            raise ConfigError(f"{kind}: {name}={number} must be {bound} or more")
    if not 0 <= data.heldout < 1:
        raise ConfigError(f"{kind}: heldout={data.heldout} is a share from 0 to below 1")


@dataclass(frozen=True, eq=False)
class Opened:
    """What data of jscale's own open to: a tokenizer, and streams of rows."""

    config: Any  # the data
    tokenizer: Tokenizer
    train: TokenStream
    heldout: TokenStream | None

    @property
    def fingerprint(self) -> str:
        """Changes when any batch of training or evaluation would change."""
        return digest_values(self.train.fingerprint, self.heldout and self.heldout.fingerprint)

    @property
    def sides(self) -> dict[str, TokenStream]:
        """The streams by name."""
        return {"train": self.train} | ({"heldout": self.heldout} if self.heldout else {})

    def counts(self) -> dict[str, Any]:
        """What every summary has: the fingerprint, the vocabulary, and what each side holds."""
        return {
            "fingerprint": self.fingerprint,
            "vocab": self.tokenizer.vocab,
            **{side: describe(stream) for side, stream in self.sides.items()},
        }


def describe(stream: TokenStream) -> dict[str, int | float]:
    """Counts of a stream, and the part of its places that is padding."""
    return {
        "documents": sum(part.count() for part in stream.parts),
        "rows": stream.rows,
        "tokens": stream.tokens,
        "padding": 1 - stream.tokens / (stream.rows * stream.length),
        "batches": stream.rows / stream.batch,
    }
