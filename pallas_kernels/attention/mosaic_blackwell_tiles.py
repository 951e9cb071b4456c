"""What the Blackwell kernels of attention share: sizes, buffers in both memories, what is written.

A product of a tensor core has 128 rows, and its sums stay in tensor memory: 512 columns of 128
numbers. What it takes from there, or from shared memory, the warpgroup that asked for it has
written before.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jscale.pallas_kernels.attention.mosaic_gpu_tiles import shared

ROWS, STEP, PART = 128, 64, 64  # rows and columns of a tile; columns that are written at a time
LAYOUT = plgpu.Layout.TCGEN05
DOWN, ACROSS = LAYOUT.reduce(1), LAYOUT.reduce(0)  # numbers of each row, and of each column
COLUMNS = 512  # of tensor memory
MEMORY = 224 * 1024  # bytes of shared memory for matrices, of 227 KiB
# Registers of a thread, where two warpgroups compute: 2 · 128 · 232 + 128 · 40 is less than 65,536.
MANY, FEW = 232, 40

Ordered = partial(plgpu.Barrier, orders_tensor_core=True)


def tensor(*shape: int, dtype: Any = jnp.float32) -> Any:
    """A buffer in tensor memory: of sums, or of the left factor of a product."""
    return plgpu.TMEM(shape, dtype, packed=dtype != jnp.float32)


def stages(held: int, width: int) -> int:
    """How many tiles of so many columns fit beside so many held numbers; at most 4."""
    return min(4, (MEMORY // 2 - held) // (STEP * width))


def part_of(ref: Any, group: Any, width: int) -> Any:
    """A warpgroup's columns of a buffer in tensor memory."""
    return ref.at[:, pl.ds(group * width, width)]


def sharing(groups: int, group: Any, copy: Callable[[], None], compute: Callable[[], None]) -> None:
    """`compute()` in as many warpgroups, and `copy()` in the last, which has few registers."""

    @pl.when(group == groups)
    def _() -> None:
        if groups > 1:  # else there are enough for all
            plgpu.set_max_registers(FEW, action="decrease")
        copy()

    @pl.when(group < groups)
    def _() -> None:
        if groups > 1:
            plgpu.set_max_registers(MANY, action="increase")
        compute()


def staging(groups: int, dtype: Any) -> Any:
    """The buffers through which results are written."""
    return shared(groups, ROWS, PART, dtype=dtype)


def write(source: Any, factor: Any, buffer: Any, target: Callable[[Any], Any]) -> None:
    """Store sums times a factor of each row, 0 where that is 0, at `target(columns)`.

    Where a factor is 0 the sums may never have been written.
    """
    over = lax.broadcast_in_dim(factor, (ROWS, PART), [0])
    for start in range(0, source.shape[1], PART):
        columns = pl.ds(start, PART)
        found = plgpu.async_load_tmem(source.at[:, columns], layout=LAYOUT)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        buffer[...] = jnp.where(over == 0, 0.0, found * over).astype(buffer.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, target(columns))
