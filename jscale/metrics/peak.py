"""Peak FLOP/s of a device, as data: what MFU divides by.

Dense tensor peaks per JAX device (not per chip, where a chip is two devices), from the vendors'
data sheets; figures with structured sparsity are halved.
"""

import re
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

TERA = 1e12


class Peak(NamedTuple):
    """FLOP/s of one device, and whether a table knew it or a multiplication measured it."""

    flops: float
    origin: Literal["known", "measured"]


class Chip(NamedTuple):
    """TFLOP/s by width of the numbers: 16 bits, 8 bits, and what a float32 matmul runs at."""

    sixteen: float
    eight: float | None
    thirty_two: float


# A TPU multiplies float32 in bfloat16 passes; one pass is JAX's default precision.
TPUS = {
    "TPU v2": Chip(22.5, None, 22.5),  # two devices a chip
    "TPU v3": Chip(61.5, None, 61.5),  # two devices a chip
    "TPU v4": Chip(275, 275, 275),
    "TPU v5 lite": Chip(197, 394, 197),
    "TPU v5e": Chip(197, 394, 197),
    "TPU v5": Chip(459, 918, 459),
    "TPU v5p": Chip(459, 918, 459),
    "TPU v6 lite": Chip(918, 1836, 918),
    "TPU v6e": Chip(918, 1836, 918),
    "TPU7x": Chip(1153.5, 2307, 1153.5),  # two devices a chip
}
# Found as whole words in names such as "NVIDIA H100 80GB HBM3", the first row that fits. Float32
# multiplies as TensorFloat-32, JAX's default on these.
GPUS = {
    "H100 PCIe": Chip(756, 1513, 378),
    "H100 NVL": Chip(835, 1671, 418),
    "H100": Chip(989, 1979, 494.7),
    "H800": Chip(989, 1979, 494.7),
    "H200": Chip(989, 1979, 494.7),
    "GH200": Chip(989, 1979, 494.7),
    "H20": Chip(148, 296, 74),
    "A100": Chip(312, 624, 156),
    "A800": Chip(312, 624, 156),
    "B200": Chip(2250, 4500, 1125),
    "B300": Chip(2250, 4500, 1125),
    "GB200": Chip(2500, 5000, 1250),
    "GB300": Chip(2500, 5000, 1250),
    "L40S": Chip(362, 733, 183),
    "L4": Chip(121, 242, 60),
}


def known_peak(kind: str, dtype: Any = "bfloat16") -> Peak | None:
    """The peak of a device kind (`device.device_kind`), or None when the table lacks it.

    >>> known_peak("NVIDIA H100 80GB HBM3")
    Peak(flops=989000000000000.0, origin='known')
    >>> known_peak("cpu") is None
    True
    """
    chip = TPUS.get(kind)
    if chip is None:
        words = (row for name, row in GPUS.items() if re.search(rf"\b{name}\b", kind))
        chip = next(words, None)
    if chip is None:
        return None
    by_width = {1: chip.eight, 2: chip.sixteen, 4: chip.thirty_two}
    tera = by_width.get(jnp.dtype(dtype).itemsize)
    return None if tera is None else Peak(tera * TERA, "known")


def measured_peak(
    dtype: Any = "float32", seconds: float = 0.2, clock: Callable[[], float] = time.perf_counter
) -> Peak:
    """The best FLOP/s of a square matmul on the first device, in about `seconds`.

    Simulated CPU devices share the cores that one of them can use alone, and each is given its
    part.
    """
    device = jax.local_devices()[0]
    side = 512 if device.platform == "cpu" else 4096
    with jax.default_device(device):
        a = jnp.ones((side, side), dtype)
        multiply = jax.jit(jnp.matmul).lower(a, a).compile()
        multiply(a, a).block_until_ready()
        best, start = float("inf"), clock()
        while True:
            begin = clock()
            multiply(a, a).block_until_ready()
            end = clock()
            best = min(best, end - begin)
            if end - start >= seconds:
                break
    share = jax.local_device_count() if device.platform == "cpu" else 1
    return Peak(2.0 * side**3 / best / share, "measured")


def find_peak(dtype: Any = "bfloat16") -> Peak:
    """The peak of this process's devices: from the table, else measured once."""
    return known_peak(jax.local_devices()[0].device_kind, dtype) or measured_peak(dtype)
