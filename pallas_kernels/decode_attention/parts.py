"""The work of a call, cut into parts: the tokens of one sequence within one tile of tokens."""

# T tokens, S sequences, M pages of a sequence, C places in a page, O parts, g counts groups of
# pages.

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.decode_attention.sequences import Sequences


class Size(NamedTuple):
    """How many tokens a tile has, and how many pages are taken at a time."""

    tokens: int
    pages: int


class Parts(NamedTuple):
    """[O] each, in the order of tokens; the first `count` are there, the others are empty.

    Attributes:
        tile: which tile of tokens.
        sequence: whose tokens.
        begin, end: the first token and the one after the last.
        shift: what makes a token's place its position.
        length: how many keys the sequence has.
        first, last: the first group of pages of which a token may see something, and the one
            after the last. A part that is there has one at least.
    """

    count: Int[Array, ""]
    tile: Int[Array, " O"]
    sequence: Int[Array, " O"]
    begin: Int[Array, " O"]
    end: Int[Array, " O"]
    shift: Int[Array, " O"]
    length: Int[Array, " O"]
    first: Int[Array, " O"]
    last: Int[Array, " O"]


def most(tokens: int, sequences: int, size: Size) -> int:
    """How many parts there can be: each sequence but the first may begin within a tile."""
    return min(-(-tokens // size.tokens) + sequences - 1, tokens)


def cut(sequences: Sequences, tokens: int, places: int, mask: Mask, size: Size) -> Parts:
    """The parts of a call; `places` is the length of a page."""
    S, M = sequences.table.shape
    t, step = size.tokens, size.pages * places
    first, last = (jnp.clip(x.astype(jnp.int32), 0, tokens) for x in sequences.ends())
    lengths = sequences.lengths.astype(jnp.int32)
    tiles = jnp.where((last > first) & (lengths > 0), (last - 1) // t - first // t + 1, 0)
    sums = jnp.cumsum(tiles)
    part = jnp.arange(most(tokens, S, size), dtype=jnp.int32)
    there = part < sums[-1]
    real = jnp.minimum(part, sums[-1] - 1)  # those that are not there stay where the last one is
    mine = (sums[None] <= real[:, None]).sum(1, dtype=jnp.int32)
    tile = jnp.maximum(first[mine] // t + real - (sums - tiles)[mine], 0)
    begin = jnp.where(there, jnp.maximum(first[mine], tile * t), 0)
    end = jnp.where(there, jnp.minimum(last[mine], (tile + 1) * t), 0)
    shift, length = (lengths - last)[mine], lengths[mine]
    groups = jnp.arange(-(-M // size.pages), dtype=jnp.int32) * step
    low, high = (x[:, None] + shift[:, None] for x in (begin, end - 1))
    least, greatest = groups[None], jnp.minimum(groups[None] + step, length[:, None]) - 1
    seen = mask.some(low, high, least, greatest) & (least <= greatest) & there[:, None]
    some = seen.any(1)
    begins = jnp.where(some, seen.argmax(1), 0)
    ends = jnp.where(some, groups.size - seen[:, ::-1].argmax(1), there)
    whole = (tile, mine, begin, end, shift, length, begins, ends)
    return Parts(sums[-1], *(x.astype(jnp.int32) for x in whole))
