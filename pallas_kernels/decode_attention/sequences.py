"""Which tokens are whose: sequences of unequal lengths on one axis, and where their pages lie."""

# T tokens, S sequences, M pages of a sequence at most.

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Sequences(NamedTuple):
    """Several sequences' new tokens, one after another, and their contexts' pages.

    How many tokens and how many sequences there really are may change without a new program: a
    sequence of length 0, or without new tokens, costs nothing.

    Attributes:
        starts: [S + 1], growing: the tokens from starts[s] until starts[s + 1] are of sequence s.
            Tokens outside all of them belong to nobody.
        lengths: [S], how many tokens sequence s has with its new ones, which are its last: of n
            new tokens the first is at position lengths[s] − n.
        table: [S, M], the pages of sequence s in order. Entries of pages that no token sees may
            be anything.
    """

    starts: Int[Array, " starts"]
    lengths: Int[Array, " S"]
    table: Int[Array, "S M"]

    def ends(self) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
        """The first of each sequence's tokens and the one after its last.

        Where there are more tokens than the length tells, those before position 0 are nobody's.
        """
        first, last = self.starts[:-1], self.starts[1:]
        return jnp.minimum(jnp.maximum(first, last - self.lengths), last), last

    def owners(self, tokens: int) -> tuple[Int[Array, " T"], Int[Array, " T"], Bool[Array, " T"]]:
        """The sequence and position of each token, and whether it has any."""
        place = jnp.arange(tokens)
        first, last = self.ends()
        # Of sequences that start at the same token all but the last are empty.
        mine = (self.starts[None, 1:] <= place[:, None]).sum(1, dtype=jnp.int32)
        mine = jnp.minimum(mine, self.lengths.size - 1)
        owned = (first[mine] <= place) & (place < last[mine])
        return mine, place + (self.lengths - last)[mine], owned
