"""What is known of a call of decode attention while tracing."""

from typing import NamedTuple

from jaxtyping import Array

from jscale.pallas_kernels.attention.mask import CAUSAL, Mask
from jscale.pallas_kernels.decode_attention.pages import Pages
from jscale.pallas_kernels.decode_attention.sequences import Sequences


class Call(NamedTuple):
    """What an implementation may refuse, and a choice may depend on."""

    tokens: int
    sequences: int
    pages: int  # of a sequence, at most
    places: int  # in a page
    count: int  # of pages in all
    heads: int
    kv_heads: int
    head: int
    value: int
    dtype: str
    stored: str
    mask: Mask = CAUSAL

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens of {self.sequences} sequences, {self.pages} pages of"
            f" {self.places} each, {self.heads} heads over {self.kv_heads} of {self.head},"
            f" {self.dtype} over {self.stored}"
        )

    @staticmethod
    def of(q: Array, pages: Pages, sequences: Sequences, mask: Mask) -> "Call":
        """The description of a call from its arguments."""
        (T, N, H), (P, K, C, V), (S, M) = q.shape, pages.v.shape, sequences.table.shape
        return Call(T, S, M, C, P, N, K, H, V, str(q.dtype), str(pages.k.dtype), mask)
