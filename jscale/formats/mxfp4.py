"""Weights of four bits with shared exponents (MXFP4), read as the numbers that they stand for.

A release keeps such a weight as two arrays: `…_blocks`, in which two numbers share a byte, and
`…_scales`, an exponent for each 32 of them. Source: OCP Microscaling Formats 1.0; OpenAI 2025,
arXiv 2508.10925.
"""

# E experts, R rows, G blocks of a row, C columns: 32 of each block.

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jscale.errors import CheckpointError
from jscale.formats.window import Box

BLOCK = 32  # numbers that share an exponent
BIAS = 127  # an exponent of 0 is kept as this
HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([HALF, -HALF])  # of four bits


def unpack(
    blocks: UInt8[np.ndarray, "E R G 16"], scales: UInt8[np.ndarray, "E R G"]
) -> Float[np.ndarray, "E C R"]:
    """The numbers, each row as a column; of a byte the lower half comes first.

    >>> one = unpack(np.full((1, 1, 1, 16), 0x72, np.uint8), np.full((1, 1, 1), 128, np.uint8))
    >>> one.shape, one[0, :2, 0].tolist()
    ((1, 32, 1), [2.0, 12.0])
    """
    pairs = np.stack([VALUES[blocks & 15], VALUES[blocks >> 4]], -1)
    numbers = np.ldexp(
        pairs.reshape(*scales.shape, BLOCK), scales.astype(np.int32)[..., None] - BIAS
    )
    return numbers.reshape(*scales.shape[:2], -1).swapaxes(1, 2)


class Unpacked:
    """A release (`stream.Release`) whose packed weights have the names and shapes of plain ones.

    Raises:
        CheckpointError: blocks without their scales, or of other shapes than these need.
    """

    def __init__(self, release: Any):
        self.release, names = release, set(release)
        found = {name.removesuffix("_blocks") for name in names if name.endswith("_blocks")}
        self.packed = {name for name in found if f"{name}_scales" in names}
        parts = {f"{name}_{part}" for name in self.packed for part in ("blocks", "scales")}
        self.names = (names - parts) | self.packed
        for name in self.packed:
            blocks, scales = (tuple(release.shape(f"{name}_{p}")) for p in ("blocks", "scales"))
            if len(scales) != 3 or blocks != (*scales, BLOCK // 2):
                raise CheckpointError(
                    f"{name}_blocks {blocks} must be {(*scales, BLOCK // 2)}: 16 bytes for each of"
                    " its scales"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, as it is unpacked."""
        if name not in self.packed:
            return self.release.shape(name)
        experts, rows, blocks = self.release.shape(f"{name}_scales")
        return experts, blocks * BLOCK, rows

    def dtype(self, name: str) -> str:
        """What an array holds, as it is unpacked."""
        return "F32" if name in self.packed else self.release.dtype(name)

    def part(self, name: str, box: Box) -> np.ndarray:
        """A box of an array; of packed ones the blocks are read that it touches."""
        if name not in self.packed:
            return self.release.part(name, box)
        wanted = box or (slice(None),) * 3
        sizes = self.shape(name)
        whole = (slice(*s.indices(n)[:2]) for s, n in zip(wanted, sizes, strict=True))
        experts, columns, rows = whole
        first, last = columns.start // BLOCK, -(-columns.stop // BLOCK)
        kept = (experts, rows, slice(first, last))
        blocks = self.release.part(f"{name}_blocks", (*kept, slice(0, BLOCK // 2)))
        out = unpack(blocks, self.release.part(f"{name}_scales", kept))
        return out[:, columns.start - first * BLOCK : columns.stop - first * BLOCK]
