"""The tiles of grouped matmul's kernels: rules, what fits a chip, and what a tuner tries."""

from itertools import product
from typing import Any, NamedTuple

from jscale.pallas_kernels.block import up
from jscale.pallas_kernels.tiles.gpu import shared_memory
from jscale.pallas_kernels.tiles.tunable import Tunable

LANES = 128  # numbers in one row of a TPU's vector register


class Extent(NamedTuple):
    """The sizes of a call on which its tiles may depend."""

    rows: int
    inner: int
    outer: int
    groups: int
    dtype: str
    weights: str

    @property
    def width(self) -> int:
        """Bytes of one number of the rows."""
        return 4 if self.dtype == "float32" else 2

    @property
    def weight(self) -> int:
        """Bytes of one number of the matrices."""
        return 4 if self.weights == "float32" else 2


class Tiles(NamedTuple):
    """How many of the rows, of their size, and of the results' size are taken at a time."""

    rows: int
    inner: int
    outer: int


class Sizes(NamedTuple):
    """Tiles of the product, of the gradient of the rows, and of that of the matrices."""

    forward: Tiles
    backward: Tiles
    matrices: Tiles


def room(kind: str) -> int:
    """Bytes of vector memory that tiles may take: half of a v4's 16 MiB, or of others' least 64."""
    return (8 if kind == "TPU v4" else 32) * 2**20


def limit(kind: str) -> int:
    """Bytes of vector memory that a kernel may take in all; the compiler's own limit is lower."""
    return (14 if kind == "TPU v4" else 48) * 2**20


def needs(part: str, extent: Extent, size: Tiles) -> int:
    """Bytes of vector memory: all blocks twice, of which one is in use and one on its way."""
    t, d, f = size
    x, w = extent.width, extent.weight
    blocks = 2 * ((t * d + t * f) * x + d * f * w)
    sums = {"forward": t * f, "backward": t * d, "matrices": d * f}[part]
    split = 3 * (t * d + t * f + d * f) * 2 if extent.width == 4 else 0  # into bfloat16 parts
    return blocks + 2 * 4 * sums + split


def for_tpu(kind: str, extent: Extent) -> Sizes:
    """Tiles by reasoning, not yet measured.

    A visit costs about 0.35 µs beside its products, and a group one visit more than its rows fill:
    a quarter of a mean group weighs the two, with at least the 128 rows that a matrix unit wants.
    The matrix stays while its group is gone through if all that is summed over is one tile: then
    so few rows need not hide the fetch of a matrix.
    """
    each = extent.rows // max(1, extent.groups) // 4
    t = max(LANES, min(512, 1 << max(each, 1).bit_length() - 1))
    wanted = Sizes(Tiles(t, 2048, 1024), Tiles(t, 1024, 2048), Tiles(t, 1024, 1024))
    found = {}
    for part, size in wanted._asdict().items():
        size = _cut(extent, size)
        while needs(part, extent, size) > room(kind):
            wider = "inner" if size.inner >= size.outer else "outer"
            size = size._replace(**{wider: -(-getattr(size, wider) // 256) * LANES})
        found[part] = size
    return Sizes(**found)


def _cut(extent: Extent, size: Tiles) -> Tiles:
    """Tiles no larger than what there is, filled up to whole registers.

    A size is divided into even tiles: of 768, in tiles of 512, the second would be half empty.
    """
    rows = min(size.rows, up(extent.rows, 16))
    even = lambda most, length: up(-(-length // -(-length // most)), LANES)
    return Tiles(rows, even(size.inner, extent.inner), even(size.outer, extent.outer))


def _unfit_for_tpu(kind: str, extent: Extent, sizes: Sizes) -> str | None:
    for part, size in sizes._asdict().items():
        if size.rows % 16 or size.inner % LANES or size.outer % LANES:
            return f"are no multiples of 16 rows and {LANES} columns ({part})"
        if needs(part, extent, size) > room(kind):
            return f"need more than {room(kind):,} bytes of vector memory ({part})"
    return None


def _try(part: str, every: list[Any]) -> Any:
    """Tiles of one pass, beside those of the others as they are."""
    return lambda kind, extent, now: [now._replace(**{part: tiles}) for tiles in every]


_TPU_TILES = [
    Tiles(*x) for x in product((128, 256, 512, 1024), (512, 1024, 2048, 4096), (512, 1024, 2048))
]

TPU = Tunable(
    "grouped matmul",
    "tpu",
    Sizes,
    rule=for_tpu,
    unfit=_unfit_for_tpu,
    cut=lambda extent, sizes: Sizes(*(_cut(extent, size) for size in sizes)),
    groups=tuple(_try(part, _TPU_TILES) for part in Sizes._fields),
)


class Warps(NamedTuple):
    """The same for a program on a GPU, by how many warps, loaded how many steps ahead."""

    rows: int
    inner: int
    outer: int
    warps: int
    stages: int


class Programs(NamedTuple):
    """Tiles of the product, of the gradient of the rows, and of that of the matrices."""

    forward: Warps
    backward: Warps
    matrices: Warps


NUMBERS = 192  # float32 numbers that a thread may hold, of its 255 registers


def for_triton(kind: str, extent: Extent) -> Programs:
    """Tiles by reasoning, not yet measured.

    128 × 256 sums of 8 warps are 128 registers a thread, and read 48 KiB for each 64 that are
    summed over. Small groups have fewer rows in a tile. Float32, without tensor cores, holds its
    factors in registers as well.
    """
    if "float32" in (extent.dtype, extent.weights):
        wide = Warps(32, 32, 64, 4, 2) if extent.dtype == "float32" else Warps(64, 32, 128, 4, 2)
        t, k, n, *rest = wide
        return Programs(wide, Warps(t, n, k, *rest), Warps(32, t, n, *rest))
    large = shared_memory(kind) > 160 * 1024
    each = max(1, extent.rows // max(1, extent.groups))
    t = max(16, min(128, 1 << (each - 1).bit_length()))
    n, warps = (256, 8) if large and t == 128 else (128, 4)
    stages = 4 if large and n == 128 else 3
    forward, backward = Warps(t, 64, n, warps, stages), Warps(t, n, 64, warps, stages)
    return Programs(forward, backward, Warps(64, 128, n, warps, stages))


def cut_warps(sizes: Any, rows: int, inner: int, outer: int) -> Any:
    """Tiles of every program no larger than what there is; products need 16 of each."""
    fit = lambda most, length: min(most, max(16, 1 << (length - 1).bit_length()))

    def cut(size: Warps) -> Warps:
        return size._replace(
            rows=fit(size.rows, rows), inner=fit(size.inner, inner), outer=fit(size.outer, outer)
        )

    return type(sizes)(*(cut(size) for size in sizes))


def odd_warps(size: Warps) -> str | None:
    """Why no program on any GPU can have these tiles."""
    *lengths, warps, stages = size
    if any(n & (n - 1) for n in (*lengths, warps)) or min(lengths) < 16:
        return "must be powers of two, and lengths 16 or more"
    if warps > 16 or stages > 8:
        return "have more than 16 warps or 8 stages"
    return None


def _cut_programs(extent: Extent, sizes: Programs) -> Programs:
    return cut_warps(sizes, extent.rows, extent.inner, extent.outer)


def _unfit_for_triton(kind: str, extent: Extent, sizes: Programs) -> str | None:
    """By numbers held in registers, and by tiles that are loaded ahead into shared memory."""
    for part, size in sizes._asdict().items():
        if (why := odd_warps(size)) is not None:
            return f"{why} ({part})"
        t, d, f, warps, stages = size
        sums = {"forward": t * f, "backward": t * d, "matrices": d * f}[part]
        loaded = t * d + t * f + d * f - sums
        if sums + (loaded if extent.width == 4 else 0) > NUMBERS * 32 * warps:
            return f"hold more than {NUMBERS} numbers in a thread ({part})"
        if stages * loaded * max(extent.width, extent.weight) > shared_memory(kind):
            return f"load more than {shared_memory(kind) // 1024} KiB ahead ({part})"
    return None


def _try_on_gpu(part: str) -> Any:
    """Tiles of one pass; of what is summed over, short ones that are loaded ahead."""
    summed = {"forward": "inner", "backward": "outer", "matrices": "rows"}[part]
    length = lambda name: (32, 64) if name == summed else (32, 64, 128, 256)
    every = product(*(length(name) for name in Warps._fields[:3]), (4, 8), (2, 3, 4))
    return _try(part, [Warps(*sizes) for sizes in every])


TRITON = Tunable(
    "grouped matmul",
    "triton",
    Programs,
    rule=for_triton,
    unfit=_unfit_for_triton,
    cut=_cut_programs,
    groups=tuple(_try_on_gpu(part) for part in Programs._fields),
)

TUNABLES = (TPU, TRITON)
