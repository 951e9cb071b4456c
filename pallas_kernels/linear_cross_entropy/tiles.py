"""The tiles of linear cross-entropy's kernels: rules, what fits a chip, and what a tuner tries."""

from itertools import product
from typing import Any, NamedTuple

from jscale.pallas_kernels.block import up
from jscale.pallas_kernels.grouped_matmul.tiles import (
    LANES,
    NUMBERS,
    Tiles,
    Warps,
    cut_warps,
    odd_warps,
    room,
)
from jscale.pallas_kernels.tiles.gpu import shared_memory
from jscale.pallas_kernels.tiles.tunable import Tunable


class Extent(NamedTuple):
    """The sizes of a call on which its tiles may depend."""

    tokens: int
    dim: int
    vocabulary: int
    dtype: str
    weights: str

    @property
    def width(self) -> int:
        """Bytes of one number of the hidden states."""
        return 4 if self.dtype == "float32" else 2

    @property
    def weight(self) -> int:
        """Bytes of one number of the kernel."""
        return 4 if self.weights == "float32" else 2


class Sizes(NamedTuple):
    """Tiles for measuring and for slopes: rows are tokens, inner the model's size, outer V."""

    measure: Tiles
    slopes: Tiles


def needs(extent: Extent, size: Tiles) -> int:
    """Bytes of vector memory: blocks twice, logits with what is made of them, statistics."""
    t, d, v = size
    blocks = 2 * (t * d * extent.width + d * v * extent.weight + t * v * extent.width)
    split = 3 * (t * d + d * v) * 2 if extent.width == 4 else 0  # into bfloat16 parts
    cast = d * v * extent.width if extent.weight != extent.width else 0
    return blocks + split + cast + 3 * 4 * t * v + 4 * 4 * t * LANES


def for_tpu(kind: str, extent: Extent) -> Sizes:
    """Tiles by reasoning, not yet measured.

    The kernel's numbers are read once for each tile of tokens, hidden states once for each tile of
    the vocabulary: 1024 of both are 512 FLOPs a byte, where chips have from 166 (v5p) to 560 (v6e).
    Of the model's size so much is taken that few steps are left.
    """
    size = _cut(extent, Tiles(1024, 1024, 1024))
    while needs(extent, size) > room(kind):
        name = max(("outer", "inner", "rows"), key=lambda n: getattr(size, n))
        size = size._replace(**{name: up(getattr(size, name) // 2, LANES)})
    return Sizes(size, size)


def _cut(extent: Extent, size: Tiles) -> Tiles:
    """Tiles no larger than what there is, and even: filled up to whole registers only."""
    even = lambda most, length: min(most, up(-(-length // -(-length // most)), LANES))
    rows, inner, outer = size
    return Tiles(even(rows, extent.tokens), even(inner, extent.dim), even(outer, extent.vocabulary))


def _unfit_for_tpu(kind: str, extent: Extent, sizes: Sizes) -> str | None:
    for part, size in sizes._asdict().items():
        if any(n % LANES for n in size):
            return f"are no multiples of {LANES} ({part})"
        if needs(extent, size) > room(kind):
            return f"need more than {room(kind):,} bytes of vector memory ({part})"
    return None


def _try(part: str, every: list[Any]) -> Any:
    """Tiles of one kernel, beside those of the other as they are."""
    return lambda kind, extent, now: [now._replace(**{part: tiles}) for tiles in every]


_TPU_TILES = [
    Tiles(*x) for x in product((256, 512, 1024, 2048), (512, 1024, 2048), (512, 1024, 2048))
]

TPU = Tunable(
    "linear cross-entropy",
    "tpu",
    Sizes,
    rule=for_tpu,
    unfit=_unfit_for_tpu,
    cut=lambda extent, sizes: Sizes(*(_cut(extent, size) for size in sizes)),
    groups=tuple(_try(part, _TPU_TILES) for part in Sizes._fields),
)


class Programs(NamedTuple):
    """The same for programs on a GPU."""

    measure: Warps
    slopes: Warps


def for_triton(kind: str, extent: Extent) -> Programs:
    """Tiles by reasoning, not yet measured.

    128 × 256 logits of 8 warps are 128 registers a thread, and read 48 KiB for each 64 that are
    summed over. Float32, without tensor cores, holds its factors in registers as well.
    """
    if "float32" in (extent.dtype, extent.weights):
        size = Warps(32, 32, 64, 4, 2) if extent.dtype == "float32" else Warps(64, 32, 128, 4, 2)
        return Programs(size, size)
    large = shared_memory(kind) > 160 * 1024
    size = Warps(128, 64, 256, 8, 3) if large else Warps(128, 64, 128, 4, 3)
    return Programs(size, size)


def _cut_programs(extent: Extent, sizes: Programs) -> Programs:
    return cut_warps(sizes, extent.tokens, extent.dim, extent.vocabulary)


def _unfit_for_triton(kind: str, extent: Extent, sizes: Programs) -> str | None:
    """By numbers held in registers, and by tiles that are loaded ahead into shared memory."""
    for part, size in sizes._asdict().items():
        if (why := odd_warps(size)) is not None:
            return f"{why} ({part})"
        t, d, v, warps, stages = size
        loaded = t * d + d * v
        if t * v + (loaded if extent.width == 4 else 0) > NUMBERS * 32 * warps:
            return f"hold more than {NUMBERS} numbers in a thread ({part})"
        if stages * (t * d * extent.width + d * v * extent.weight) > shared_memory(kind):
            return f"load more than {shared_memory(kind) // 1024} KiB ahead ({part})"
    return None


_PROGRAMS = [
    Warps(*x) for x in product((64, 128, 256), (32, 64, 128), (64, 128, 256), (4, 8), (2, 3, 4))
]

TRITON = Tunable(
    "linear cross-entropy",
    "triton",
    Programs,
    rule=for_triton,
    unfit=_unfit_for_triton,
    cut=_cut_programs,
    groups=tuple(_try(part, _PROGRAMS) for part in Programs._fields),
)

TUNABLES = (TPU, TRITON)
