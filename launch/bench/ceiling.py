"""What the device can do at best: a large product of matrices, and a large copy, as measured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jscale.launch.bench.measure import Clock, take_turns
from jscale.launch.bench.subject import Program, Work, compiled


class Ceiling(NamedTuple):
    """FLOPs and bytes in a second of the clock that also times the competitors."""

    flops: float
    bytes: float

    def least(self, work: Work) -> float:
        """Seconds below which such work cannot be done."""
        return max(work.flops / self.flops, work.bytes / self.bytes)


def product(side: int, dtype: str) -> Program:
    """The product of two square matrices."""
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return compiled(jnp.matmul, a, a)


def copy(count: int) -> Program:
    """Bytes read and written: 2 · 4 · `count`."""
    return compiled(lambda x: x + 1, jnp.ones((count,), jnp.float32))


def ceiling_of(platform: str, dtype: str, clock: Clock, quick: bool) -> Ceiling:
    """Both ceilings."""
    side = {"cpu": 256 if quick else 2048}.get(platform, 512 if quick else 8192)
    count = {"cpu": 2**16 if quick else 2**24}.get(platform, 2**20 if quick else 2**28)
    programs = {"product": product(side, dtype), "copy": copy(count)}
    found = take_turns(programs, clock)
    return Ceiling(
        2 * side**3 / min(found["product"].seconds), 8 * count / min(found["copy"].seconds)
    )


def side_of(flops: float, platform: str) -> int:
    """The side of square matrices whose product takes about so many FLOPs, in whole tiles."""
    step = 8 if platform == "cpu" else 128
    return max(step, round((flops / 2) ** (1 / 3) / step) * step)
