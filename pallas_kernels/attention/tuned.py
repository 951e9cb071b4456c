"""The tiles of attention's implementations: rules, what fits a chip, and what a tuner tries."""

from itertools import product
from typing import Any, NamedTuple

from jscale.pallas_kernels.attention import tpu_tiles, triton_tiles, visits
from jscale.pallas_kernels.attention.triton_tiles import Tiles
from jscale.pallas_kernels.tiles.gpu import shared_memory
from jscale.pallas_kernels.tiles.tunable import Tunable


class Extent(NamedTuple):
    """The sizes of a call on which its tiles may depend."""

    queries: int
    keys: int
    head: int
    value: int
    dtype: str

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)


XLA = Tunable(
    "attention",
    "xla",
    visits.Tiles,
    rule=lambda kind, extent: visits.rule(extent.queries, extent.keys),
    unfit=lambda kind, extent, tiles: (
        "are no multiples of 8" if tiles.queries % 8 or tiles.keys % 8 else None
    ),
    cut=lambda extent, tiles: visits.tiles(extent.queries, extent.keys, tiles),
    groups=(
        lambda kind, extent, now: [
            visits.Tiles(*pair) for pair in product((32, 64, 128, 256, 512), repeat=2)
        ],
    ),
)


def _unfit_for_tpu(kind: str, extent: Extent, tiles: tpu_tiles.Tiles) -> str | None:
    if any(length % tpu_tiles.LANES for length in tiles):
        return f"are no multiples of {tpu_tiles.LANES}"
    needs = tpu_tiles.needs(tiles, extent.head, extent.value, extent.width)
    if needs > tpu_tiles.room(kind):
        return f"need {needs:,} bytes of vector memory, of which there are {tpu_tiles.room(kind):,}"
    return None


TPU = Tunable(
    "attention",
    "tpu",
    tpu_tiles.Tiles,
    rule=lambda kind, extent: tpu_tiles.tiles(
        kind, extent.head, extent.value, extent.queries, extent.keys, extent.width
    ),
    unfit=_unfit_for_tpu,
    cut=lambda extent, tiles: tpu_tiles.cut(tiles, extent.queries, extent.keys),
    groups=(
        lambda kind, extent, now: [
            tpu_tiles.Tiles(*pair) for pair in product((128, 256, 512, 1024, 2048), repeat=2)
        ],
    ),
)


class Sizes(NamedTuple):
    """Tiles of the forward pass, of the gradient of q, and of those of k and v."""

    forward: Tiles
    queries: Tiles
    keys: Tiles


def sizes(dtype: str, head: int) -> Sizes:
    """Tiles by the size of heads, reasoned from registers and not yet measured.

    A thread has 255 registers. A tile of 128 × 128 sums in float32 takes 64 of 8 warps, 128 of 4;
    the gradients of k and v are two such sums, hence 8 warps there. Float32 products are made
    without tensor cores and hold their factors in registers as well.
    """
    if dtype == "float32":
        small = Tiles(32, 32) if head <= 128 else Tiles(16, 16)
        return Sizes(small, small, small)
    if head <= 64:
        return Sizes(Tiles(128, 64, 4, 3), Tiles(128, 64, 8, 2), Tiles(64, 128, 8, 2))
    if head <= 128:
        return Sizes(Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2), Tiles(64, 128, 8, 2))
    return Sizes(Tiles(64, 32, 8, 2), Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 2))


NUMBERS = 208  # float32 numbers that a thread may hold, of its 255 registers


def _unfit_for_triton(kind: str, extent: Extent, found: Sizes) -> str | None:
    """By numbers held in registers, and by tiles that are loaded ahead into shared memory."""
    head, value = triton_tiles.wide(extent.head), triton_tiles.wide(extent.value)
    room = shared_memory(kind)
    for name, tiles in found._asdict().items():
        t, s, warps, stages = tiles.queries, tiles.keys, tiles.warps, tiles.stages
        if any(n & (n - 1) for n in (t, s, warps)) or min(t, s) < 16:
            return f"must be powers of two, and lengths 16 or more ({name})"
        if warps > 16 or stages > 8:
            return f"have more than 16 warps or 8 stages ({name})"
        kept = {"forward": t * value, "queries": t * head, "keys": s * (head + value)}[name]
        factors = (t + s) * (head + value) if extent.width == 4 else 0
        if kept + t * s + factors > NUMBERS * 32 * warps:
            return f"hold more than {NUMBERS} numbers in a thread ({name})"
        held, loaded = (s, t) if name == "keys" else (t, s)
        if (held * head + stages * loaded * (head + value)) * extent.width > room:
            return f"load more than {room // 1024} KiB ahead ({name})"
    return None


def _try(part: str) -> Any:
    """Tiles of one pass, beside those of the others as they are."""
    lengths, warps, stages = (32, 64, 128, 256), (4, 8), (2, 3)
    every = [Tiles(*x) for x in product(lengths, lengths, warps, stages)]
    return lambda kind, extent, now: [now._replace(**{part: tiles}) for tiles in every]


TRITON = Tunable(
    "attention",
    "triton",
    Sizes,
    rule=lambda kind, extent: sizes(
        extent.dtype, max(triton_tiles.wide(extent.head), triton_tiles.wide(extent.value))
    ),
    unfit=_unfit_for_triton,
    cut=lambda extent, found: Sizes(*(x.of(extent.queries, extent.keys) for x in found)),
    groups=(_try("forward"), _try("queries"), _try("keys")),
)

TUNABLES = (XLA, TPU, TRITON)
