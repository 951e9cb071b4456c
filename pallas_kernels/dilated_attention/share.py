"""What a device has of rows and heads that several share, and what it asks of the others."""

# B batch, T a device's own length.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax import lax
from jaxtyping import Array

from jscale.pallas_kernels.dilated_attention.pattern import Pattern


@dataclass(frozen=True)
class Share:
    """A device's part, within `shard_map`: heads from some number on, and tokens of each row.

    Parts of a row are equal, and in the order of their devices over the mesh axes.
    """

    axes: tuple[str, ...] = ()  # over which rows are split
    first: Any = 0  # the number of the first head, which may be traced

    @property
    def ways(self) -> int:
        """Into how many parts rows are split."""
        return lax.axis_size(self.axes) if self.axes else 1


WHOLE = Share()


def fits(patterns: Sequence[tuple[int, int]], part: int, ways: int) -> bool:
    """Whether segments and parts of so many tokens nest, and all parts hold places alike."""

    def one(segment: int, dilation: int) -> bool:
        segment = min(segment, part * ways)
        across = segment % part == 0 and (part * ways) % segment == 0 and part % dilation == 0
        return part % segment == 0 or across

    return ways == 1 or (part > 0 and all(one(*pattern) for pattern in patterns))


@dataclass(frozen=True)
class Reach:
    """The devices, neighbours over the axes of a share, that have a segment in common."""

    axes: tuple[str, ...] = ()
    devices: int = 1

    @staticmethod
    def of(pattern: Pattern, part: int, share: Share) -> "Reach":
        """Who shares the segments of a pattern that `fits`, where each has a part of a row."""
        devices = max(1, pattern.segment // max(1, part)) if share.axes else 1
        return Reach(share.axes, devices) if devices > 1 else Reach()

    def start(self, part: int) -> Any:
        """Where in the segment the tokens of this device begin."""
        return lax.axis_index(self.axes) % self.devices * part if self.axes else 0

    def gathered(self, x: Array) -> Array:
        """All parts of [B, T, …] that belong to the segment, one after another along T."""
        if not self.axes:
            return x
        if len(self.axes) == 1:
            (axis,), n = self.axes, self.devices
            groups = [[*range(i, i + n)] for i in range(0, lax.axis_size(axis), n)]
            return lax.all_gather(x, axis, axis=1, tiled=True, axis_index_groups=groups)
        everything = lax.all_gather(x, self.axes, axis=1, tiled=True)
        size = x.shape[1] * self.devices
        begin = lax.axis_index(self.axes) // self.devices * size
        return lax.dynamic_slice_in_dim(everything, begin, size, 1)
