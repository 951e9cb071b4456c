"""What GPU kernels that read tiles of whole arrays share: loads, masks, the order of tiles."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import triton as plgpu

SIDE = 8  # tiles of rows whose programs run side by side


def side_by_side(p: Any, rows: int, columns: int) -> tuple[Any, Any]:
    """Program p's tile of rows and of columns: `SIDE` of rows go through the columns together."""
    band = lax.div(p, np.int32(SIDE * columns))
    first = band * SIDE
    here = jnp.minimum(rows - first, SIDE)
    rest = p - first * columns
    return first + lax.rem(rest, here), lax.div(rest, here)


def ends(begin: Any, step: int, length: int) -> Any:
    """Which of `step` places are before the end; None if all tiles are whole."""
    return None if length % step == 0 else begin + jnp.arange(step) < length


def both(rows: Any, columns: Any, shape: tuple[int, ...]) -> Any:
    """The mask of a tile from those of its rows and of its columns."""
    parts = [] if rows is None else [jnp.broadcast_to(rows[:, None], shape)]
    parts += [] if columns is None else [jnp.broadcast_to(columns[None, :], shape)]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]


def load(ref: Any, keep: tuple[Any, Any]) -> Any:
    """A tile, 0 where it is not to be read."""
    mask = both(*keep, ref.shape)
    return plgpu.load(ref) if mask is None else plgpu.load(ref, mask=mask, other=0.0)


def store(ref: Any, tile: Any, mask: Any) -> None:
    """Writes a tile, or where `mask` says so."""
    plgpu.store(ref, tile) if mask is None else plgpu.store(ref, tile, mask=mask)
