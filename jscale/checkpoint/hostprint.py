"""The fingerprint of an array in host memory, by NumPy alone: the same sum, written a second time.

It reads checkpoints without a mesh or a model, and checks the compiled one from outside.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jscale.checkpoint.fingerprint import LANES, axis_salt, finish, mix, seed, word_dtype

CHUNK = 1 << 16  # elements hashed at once: a few hundred KiB, which stay in the cache


def host_fingerprint(array: np.ndarray | np.generic) -> str:
    """The fingerprint of an array in host memory, equal to that of `fingerprint`.

    >>> host_fingerprint(np.arange(3.0, dtype=np.float32))
    'd071e042e233cf9f'
    """
    shape = tuple(array.shape)
    table = np.ascontiguousarray(array).reshape(-1, shape[-1] if shape else 1)
    sums = []
    for lane, (by_word, _) in enumerate(LANES):
        total = 0
        rows, columns = _keys(array.shape, lane)
        for piece, span in _pieces(*table.shape):
            keyed = _words(table[piece, span]) * np.uint32(by_word)
            keyed += rows[piece, None]
            keyed += columns[None, span]
            total += int(np.sum(mix(keyed), dtype=np.uint64))
        sums.append(total % 2**32)
    return finish(sums, seed(array.shape, array.dtype))


def _pieces(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Slices of a table of at most CHUNK elements each."""
    tall = max(1, CHUNK // max(1, columns))
    for row in range(0, rows, tall):
        for column in range(0, columns, CHUNK):
            yield slice(row, row + tall), slice(column, column + CHUNK)


def _words(array: np.ndarray) -> np.ndarray:
    word = word_dtype(array.dtype)
    if word == "bool":
        return array.astype(np.uint32)
    if word == "uint4":
        return (array.view(np.uint8) & 0xF).astype(np.uint32)
    return array.view(word).astype(np.uint32)


def _keys(shape: Sequence[int], lane: int) -> tuple[np.ndarray, np.ndarray]:
    """Position keys: of all leading axes together, flat in row-major order, and of the last one."""
    rows = np.zeros((1,), np.uint32)
    for axis, size in enumerate(shape[:-1]):
        rows = (rows[:, None] + _axis_keys(size, lane, axis)[None, :]).reshape(-1)
    last = _axis_keys(shape[-1], lane, len(shape) - 1) if shape else np.zeros((1,), np.uint32)
    return rows, last


def _axis_keys(size: int, lane: int, axis: int) -> np.ndarray:
    positions = np.arange(size, dtype=np.uint32)
    return mix(positions * np.uint32(LANES[lane][1]) + axis_salt(lane, axis))
