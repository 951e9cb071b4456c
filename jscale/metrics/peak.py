"""Peak FLOP/s of a device: what MFU divides by.

Per JAX device, not per chip, where a chip is two devices; the figures are those of
`jscale.mesh.machines`.
"""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jscale.mesh.machines import speed_of


class Peak(NamedTuple):
    """FLOP/s of one device, and whether a table knew it or a multiplication measured it."""

    flops: float
    origin: Literal["known", "measured"]


def known_peak(kind: str, dtype: Any = "bfloat16") -> Peak | None:
    """The peak of a device kind (`device.device_kind`), or None when the table lacks it.

    >>> known_peak("NVIDIA H100 80GB HBM3")
    Peak(flops=989000000000000.0, origin='known')
    >>> known_peak("cpu") is None
    True
    """
    speed = speed_of(kind)
    if speed is None:
        return None
    by_width = {1: speed.eight, 2: speed.sixteen, 4: speed.thirty_two}
    flops = by_width.get(jnp.dtype(dtype).itemsize)
    return None if flops is None else Peak(flops, "known")


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
