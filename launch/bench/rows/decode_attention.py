"""Decode attention over a paged cache: ours, and attention over pages put together first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    differentiable,
    draw,
    exactly,
    ours,
    picked,
)
from jscale.pallas_kernels.attention.mask import CAUSAL
from jscale.pallas_kernels.decode_attention.call import Call
from jscale.pallas_kernels.decode_attention.choice import OPERATION, decode_attention
from jscale.pallas_kernels.decode_attention.pages import Pages
from jscale.pallas_kernels.decode_attention.sequences import Sequences

PLACES = 64  # in a page
MOST = 2**28  # numbers that may be gathered for the reference, or for pages put together


@dataclass(frozen=True)
class Case:
    """One new token of each sequence, over contexts of a quarter of `length` up to it."""

    sequences: int = 16
    length: int = 1024
    heads: int = 8
    kv_heads: int = 4
    head: int = 64
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return (
            f"a token of {self.sequences} sequences of up to {self.length:,}, {self.heads} heads"
            f" over {self.kv_heads} of {self.head}, {self.dtype}"
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each context, the same every time."""
        random = np.random.default_rng(0)
        found = random.integers(self.length // 4, self.length + 1, self.sequences)
        found[0] = self.length
        return found

    @property
    def pages(self) -> int:
        """Pages of a sequence, at most."""
        return -(-self.length // PLACES)


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """Heads of Llama 3 8B on accelerators."""
    if quick:
        return [Case(3, 128, 2, 1, 16, "float32" if platform == "cpu" else "bfloat16")]
    if platform == "cpu":
        return [Case(dtype="float32")]
    return [Case(64, 4096, 32, 8, 128), Case(8, 32_768, 32, 8, 128)]


def inputs(case: Case) -> dict[str, Any]:
    """Queries, pages in a shuffled order, and whose they are."""
    count = case.sequences * case.pages
    shape = count, case.kv_heads, PLACES, case.head
    drawn = draw({"q": (case.sequences, case.heads, case.head), "k": shape, "v": shape}, case.dtype)
    table = jax.random.permutation(jax.random.key(1), count).reshape(case.sequences, case.pages)
    lengths = jnp.asarray(case.lengths, jnp.int32)
    return drawn | {"lengths": lengths, "table": table.astype(jnp.int32)}


def work(case: Case) -> dict[str, Work]:
    """Keys and values of all contexts read once; there is no backward pass."""
    tokens = float(case.lengths.sum())
    width = jnp.dtype(case.dtype).itemsize
    read = 2 * width * tokens * case.kv_heads * case.head
    return {"forward": Work(4 * tokens * case.heads * case.head, read)}


def run(name: str) -> Callable[..., Any]:
    """An implementation as a function."""

    def decode(q: Any, k: Any, v: Any, lengths: Any, table: Any) -> Any:
        starts = jnp.arange(q.shape[0] + 1, dtype=jnp.int32)
        sequences = Sequences(starts, lengths, table)
        return decode_attention(q, Pages(k, v), sequences, implementation=name)

    return decode


def together(q: Any, k: Any, v: Any, lengths: Any, table: Any) -> Any:
    """Pages put together to keys and values of the longest context, and JAX's own attention."""
    whole = lambda x: x[table].swapaxes(2, 3).reshape(table.shape[0], -1, x.shape[1], x.shape[3])
    return jax.nn.dot_product_attention(
        q[:, None], whole(k), whole(v), key_value_seq_lengths=lengths
    )[:, 0]


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By attention over pages put together."""
    return exactly(together, given)


def call(case: Case) -> Call:
    """The case as implementations see it."""
    sizes = case.sequences, case.sequences, case.pages, PLACES, case.sequences * case.pages
    heads = case.heads, case.kv_heads, case.head, case.head
    return Call(*sizes, *heads, case.dtype, case.dtype, CAUSAL)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    numbers = case.sequences**2 * case.length * case.heads * case.head
    too_much = "compares every token with every context" if numbers > MOST else None
    return ours(OPERATION, call(case), run, too_much, gradients=False)


def rivals(case: Case) -> dict[str, Contender | str]:
    """Pages put together."""
    return {"jax.nn over gathered pages": differentiable(together, gradients=False)}


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return picked(OPERATION, call(case))


SUBJECT = Subject(
    *("decode_attention", Case, cases, inputs, work, values, contenders, chosen), rivals=rivals
)
