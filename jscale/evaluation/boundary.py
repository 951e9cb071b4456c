"""Where a prompt ends and what continues it begins, in tokens.

Tokens of a text and of its beginning need not agree: "ab" followed by "c" may be written [a, bc].
So prompt and continuation are encoded together, as training would see them, and the continuation is
scored from the first token at which it differs from the prompt alone. Where several continuations
of one prompt are compared, all are scored from the earliest such token, so that each counts the
same text before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from jscale.data.tokenizers import Tokenizer
from jscale.errors import DataError


@dataclass(frozen=True)
class Continuations:
    """Rows of tokens, each a prompt and one continuation, the same up to `start`."""

    rows: tuple[tuple[int, ...], ...]
    start: int  # the first token that is scored


def encode_continuations(
    tokenizer: Tokenizer, prompts: Sequence[str], choices: Sequence[Sequence[str]]
) -> list[Continuations]:
    """Each prompt with each of its continuations, from the beginning of a document.

    Raises:
        DataError: there is nothing before the first token that is scored: an empty prompt, or one
            that melts into its continuation, with a tokenizer that has no beginning of a document.
    """
    texts = [
        text
        for prompt, continuations in zip(prompts, choices, strict=True)
        for text in (prompt, *(prompt + continuation for continuation in continuations))
    ]
    # A document that has not ended: all of it but the eos.
    encoded = iter([tuple(ids[:-1]) for ids in tokenizer.encode_documents(texts)])
    out = []
    for prompt, continuations in zip(prompts, choices, strict=True):
        alone = next(encoded)
        rows = tuple(next(encoded) for _ in continuations)
        start = min(shared(alone, row) for row in rows)
        if start == 0:
            raise DataError(
                f"no token stands before the continuation of {prompt[-40:]!r}, and this tokenizer"
                " has none for the beginning of a document: give a longer prompt"
            )
        if any(len(row) == start for row in rows):
            raise DataError(f"a continuation of {prompt[-40:]!r} adds no token to it")
        out.append(Continuations(rows, start))
    return out


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first items two rows have in common.

    >>> shared([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
