"""The part of a sequence that is a device's own: where it stands in the whole."""

# B batch, T a device's own length.

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jscale.pallas_kernels.attention.mask import FULL, Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.scores import Scores


@dataclass(frozen=True)
class Across:
    """What is exchanged over one mesh axis, or over several as if they were one."""

    axis: str | tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the sequence is split, in its order."""
        return (self.axis,) if isinstance(self.axis, str) else self.axis


UNPLACED = Places()  # parts in the order of their devices, of one segment


def positions_matter(mask: Mask, scores: Scores) -> bool:
    """Whether anything asks where queries and keys stand."""
    return mask != FULL or scores.slopes is not None


def own_positions(rows: int, length: int, axis: str | tuple[str, ...]) -> Int[Array, "B T"]:
    """Positions of this device's part of a sequence that is split in its order over mesh axes."""
    return jnp.broadcast_to(lax.axis_index(axis) * length + jnp.arange(length), (rows, length))


def gathered(x: Array, axes: str | tuple[str, ...]) -> Array:
    """All devices' parts of an array [B, T, ...], one after another along T."""
    return lax.all_gather(x, axes, axis=1, tiled=True)


def gathered_places(places: Places, axes: str | tuple[str, ...]) -> Places:
    """Places of the whole sequence, from each device's own."""
    return jax.tree.map(lambda x: gathered(x, axes), places)
