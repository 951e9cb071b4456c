"""Accelerators as data: what a chip computes, holds and sends, and in which numbers it comes.

The one place for these figures. Peaks are dense ones of the vendors' data sheets (figures with
structured sparsity are halved), bandwidths are one way, everything is for one chip unless it says
otherwise. To add a machine, add a `Chip` to `CHIPS`.

Sources: [C] docs.cloud.google.com/tpu/docs, the page of the generation; [B] Austin et al. 2025,
"How to Scale Your Model", jax-ml.github.io/scaling-book (links as measured, some 0.9 of nominal);
[L] libtpu 0.0.42 and 0.0.50, the smaller of what their compilers say when a program does not fit;
[N] NVIDIA's data sheet of the product; [X] openxla/xla, xla/backends/gpu/target_config/specs, read
off real devices.
"""

import re
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import prod
from typing import NamedTuple

TERA, GIGA, GIB = 1e12, 1e9, 2**30

Shape = tuple[int, ...]


class Speed(NamedTuple):
    """Peak FLOP/s of matrix products of numbers of 16, 8 and 32 bits; None where it has none.

    32 bits as JAX multiplies float32 by default: one bfloat16 pass on a TPU, TensorFloat-32 on a
    GPU.
    """

    sixteen: float
    eight: float | None
    thirty_two: float


@dataclass(frozen=True)
class Torus:
    """How TPU chips of one kind are wired and rented: the shapes of a slice.

    `small` are the shapes without links around the ends; where `cube` is given, larger ones are
    made of whole cubes of that side, up to `largest`, and closed to a torus in every direction.
    Without cubes, a direction is closed where it is `ring` chips long.
    """

    small: tuple[Shape, ...]
    cores: int  # what a name such as v5p-64 counts on each chip
    cube: int | None = None
    largest: Shape = ()
    ring: int | None = None
    config: str = "default"  # the compiler's name for how a chip's cores are joined

    def shapes(self) -> list[Shape]:
        """Every shape that a slice may have, the small ones first."""
        if self.cube is None:
            return list(self.small)
        sides = range(self.cube, max(self.largest) + 1, self.cube)
        cubes = combinations_with_replacement(sides, len(self.largest))
        fits = [s for s in cubes if all(a <= b for a, b in zip(s, self.largest, strict=True))]
        return [*self.small, *sorted(fits, key=lambda s: (prod(s), sum(s)))]

    def shape(self, chips: int) -> Shape | None:
        """The most compact shape of so many chips; None where there is none."""
        found = [s for s in self.shapes() if prod(s) == chips]
        return min(found, key=sum) if found else None

    def wrap(self, shape: Shape) -> tuple[bool, ...]:
        """For each direction, whether the last chip is linked to the first."""
        if self.cube is not None:
            return (all(side % self.cube == 0 for side in shape),) * len(shape)
        return tuple(side == self.ring for side in shape)


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler is told of a GPU; all else of its description it can do without."""

    capability: tuple[int, int]  # CUDA's compute capability
    accelerated: bool  # instructions of just this capability, as in "9.0a"
    processors: int  # streaming multiprocessors
    lanes: int  # float32 units of one of them
    clock: float  # GHz
    cache: int  # bytes of the second-level cache
    shared: int  # bytes of shared memory of one processor
    node: int  # the most GPUs of one host
    domain: int  # GPUs that one NVLink switch joins, of one host or several


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator chip."""

    name: str  # as users write it
    kinds: tuple[str, ...]  # how JAX calls its devices; of a GPU, a word of that name
    speed: Speed
    memory: int  # bytes of high-bandwidth memory
    usable: int  # bytes of it that the programs on one device may take, all told
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s of one link to another chip, one way
    links: int
    network: float  # bytes/s to other slices or nodes, one way
    build: Torus | Gpu
    devices: int = 1  # JAX devices that one chip is


SMALL_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # [C] less than a cube of 64 chips
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # [C] v5e and v6e

CHIPS = (
    Chip(
        name="v4",
        kinds=("TPU v4",),
        speed=Speed(275 * TERA, 275 * TERA, 275 * TERA),  # [C]
        memory=32 * GIB,  # [C]
        usable=int(30.75 * GIB),  # [L] with both cores joined ("megacore")
        bandwidth=1200 * GIGA,  # [C]
        link=45 * GIGA,  # [B]
        links=6,  # [C]
        network=6.25 * GIGA,  # [B] 25 GB/s of a host of four chips
        # [C] names count the two cores of a chip; a pod is 4096 chips
        build=Torus(SMALL_3D, cores=2, cube=4, largest=(16, 16, 16), config="megacore"),
    ),
    Chip(
        name="v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        speed=Speed(197 * TERA, 394 * TERA, 197 * TERA),  # [C]
        memory=16 * GIB,  # [C]
        usable=int(15.75 * GIB),  # [L]
        bandwidth=819 * GIGA,  # [C]
        link=45 * GIGA,  # [B]
        links=4,  # [C]
        network=3.125 * GIGA,  # [C] 2 x 100 Gbit/s of a host of eight chips
        build=Torus(FLAT, cores=1, ring=16),  # [C] closed only where the pod's side is whole
    ),
    Chip(
        name="v5p",
        kinds=("TPU v5", "TPU v5p"),
        speed=Speed(459 * TERA, 918 * TERA, 459 * TERA),  # [C]; 8 bits: integers, [B]
        memory=96 * GIB,  # [C]; 95 are promised
        usable=int(95.73 * GIB),  # [L]
        bandwidth=2765 * GIGA,  # [C]
        link=90 * GIGA,  # [B]
        links=6,  # [C]
        network=6.25 * GIGA,  # [C] 50 Gbit/s
        build=Torus(SMALL_3D, cores=2, cube=4, largest=(16, 16, 24)),  # [C] the largest job
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        speed=Speed(918 * TERA, 1836 * TERA, 918 * TERA),  # [C]
        memory=32 * GIB,  # [C]
        usable=int(31.24 * GIB),  # [L]
        bandwidth=1640 * GIGA,  # [C]
        link=90 * GIGA,  # [B]
        links=4,  # [C]
        network=12.5 * GIGA,  # [C] 4 x 200 Gbit/s of a host of eight chips
        build=Torus(FLAT, cores=1, ring=16),  # [C]
    ),
    Chip(
        name="tpu7x",
        kinds=("TPU7x",),
        speed=Speed(2307 * TERA, 4614 * TERA, 2307 * TERA),  # [C]; 8 bits: floats
        memory=192 * GIB,  # [C]
        usable=int(94.74 * GIB),  # [L] for each of the two devices
        bandwidth=7370 * GIGA,  # as it was announced
        link=90 * GIGA,  # announced as 1200 GB/s both ways over six links; times 0.9, as in [B]
        links=6,  # [C]
        network=12.5 * GIGA,  # not published where we looked: that of a v6e
        # [C] a pod is 9216 chips
        build=Torus(((1, 1, 1), *SMALL_3D), cores=2, cube=4, largest=(16, 24, 24)),
        devices=2,
    ),
    Chip(
        name="a100",
        kinds=("A100",),
        speed=Speed(312 * TERA, 624 * TERA, 156 * TERA),  # [N]
        memory=85_100_068_864,  # [X] the one of 80 GB
        usable=85_100_068_864,
        bandwidth=2039 * GIGA,  # [N]
        link=25 * GIGA,  # [N] NVLink 3
        links=12,
        network=25 * GIGA,  # [N] DGX A100: one 200 Gbit/s port a GPU
        build=Gpu((8, 0), False, 108, 64, 1.41, 41_943_040, 167_936, node=8, domain=8),  # [X]
    ),
    Chip(
        name="h100",
        kinds=("H100",),
        speed=Speed(989 * TERA, 1979 * TERA, 494.7 * TERA),  # [N] SXM
        memory=84_942_979_072,  # [X]
        usable=84_942_979_072,
        bandwidth=3352 * GIGA,  # [X]
        link=25 * GIGA,  # [N] NVLink 4
        links=18,
        network=50 * GIGA,  # [N] DGX H100: one 400 Gbit/s port a GPU
        build=Gpu((9, 0), True, 132, 128, 1.98, 52_428_800, 233_472, node=8, domain=8),  # [X]
    ),
    Chip(
        name="h200",
        kinds=("H200",),
        speed=Speed(989 * TERA, 1979 * TERA, 494.7 * TERA),  # [N]
        memory=151_397_597_184,  # [X]
        usable=151_397_597_184,
        bandwidth=4800 * GIGA,  # [N]
        link=25 * GIGA,  # [N] NVLink 4
        links=18,
        network=50 * GIGA,  # [N] DGX H200
        build=Gpu((9, 0), True, 132, 128, 1.98, 52_428_800, 233_472, node=8, domain=8),  # [X]
    ),
    Chip(
        name="b200",
        kinds=("B200",),
        speed=Speed(2250 * TERA, 4500 * TERA, 1125 * TERA),  # [N]
        memory=191_514_411_008,  # [X]
        usable=191_514_411_008,
        bandwidth=7672 * GIGA,  # [X]
        link=50 * GIGA,  # [N] NVLink 5
        links=18,
        network=50 * GIGA,  # [N] DGX B200
        build=Gpu((10, 0), True, 148, 128, 1.965, 132_644_864, 233_472, node=8, domain=8),  # [X]
    ),
    Chip(
        name="gb200",
        kinds=("GB200",),
        speed=Speed(2500 * TERA, 5000 * TERA, 1250 * TERA),  # [N]
        memory=197_897_748_480,  # [X]
        usable=197_897_748_480,
        bandwidth=7928 * GIGA,  # [X]
        link=50 * GIGA,  # [N] NVLink 5
        links=18,
        network=50 * GIGA,  # [N] GB200 NVL72
        build=Gpu((10, 0), True, 152, 128, 2.062, 135_528_448, 233_472, node=4, domain=72),  # [X]
    ),
)

# Devices of which only the speed is known here: enough to tell how well a run uses them. TPUs by
# their whole name (two devices a chip), GPUs by words of it, tried before those above. [C], [N]
OTHERS = {
    "TPU v2": Speed(22.5 * TERA, None, 22.5 * TERA),
    "TPU v3": Speed(61.5 * TERA, None, 61.5 * TERA),
    "H100 PCIe": Speed(756 * TERA, 1513 * TERA, 378 * TERA),
    "H100 NVL": Speed(835 * TERA, 1671 * TERA, 418 * TERA),
    "H800": Speed(989 * TERA, 1979 * TERA, 494.7 * TERA),
    "GH200": Speed(989 * TERA, 1979 * TERA, 494.7 * TERA),
    "H20": Speed(148 * TERA, 296 * TERA, 74 * TERA),
    "A800": Speed(312 * TERA, 624 * TERA, 156 * TERA),
    "B300": Speed(2250 * TERA, 4500 * TERA, 1125 * TERA),
    "GB300": Speed(2500 * TERA, 5000 * TERA, 1250 * TERA),
    "L40S": Speed(362 * TERA, 733 * TERA, 183 * TERA),
    "L4": Speed(121 * TERA, 242 * TERA, 60 * TERA),
}


def speed_of(kind: str) -> Speed | None:
    """The speed of one JAX device by its kind (`device.device_kind`); None for an unknown one.

    >>> speed_of("TPU7x").sixteen / 1e12  # half of a chip
    1153.5
    """
    for name, speed in OTHERS.items():
        if _names(name, kind):
            return speed
    chip = chip_of(kind)
    if chip is None:
        return None
    sixteen, eight, thirty_two = chip.speed
    ways = chip.devices
    return Speed(sixteen / ways, None if eight is None else eight / ways, thirty_two / ways)


def chip_of(kind: str) -> Chip | None:
    """The chip of a JAX device by its kind; None for an unknown one.

    >>> chip_of("NVIDIA H100 80GB HBM3").name, chip_of("NVIDIA H100 PCIe")
    ('h100', None)
    """
    if any(_names(name, kind) for name in OTHERS):
        return None
    return next((c for c in CHIPS if any(_names(name, kind) for name in c.kinds)), None)


def _names(name: str, kind: str) -> bool:
    """TPUs are called by their name alone, GPUs by names with more words in them."""
    return name == kind if name.startswith("TPU") else bool(re.search(rf"\b{name}\b", kind))
