"""Where queries and keys stand: their positions, and the segments that hold them together."""

# B batch, T query length, S key length.

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

Pair = tuple[Int[Array, "B T"], Int[Array, "B S"]]


class Places(NamedTuple):
    """Positions and segments of the queries and of the keys.

    Positions of None are 0, 1, … in every row, aligned at the end; what a mask hides is then known
    while tracing. Segments of None are one for all.
    """

    positions: Pair | None = None
    segments: Pair | None = None

    def whole(self, rows: int, queries: int, keys: int) -> Pair:
        """The positions, written out for every row."""
        if self.positions is not None:
            return self.positions
        all_keys = jnp.broadcast_to(jnp.arange(keys), (rows, keys))
        return all_keys[:, keys - queries :], all_keys


ALIGNED = Places()
