"""A shuffled order without a list of it: a keyed permutation of 0..n-1, computed where it is asked.

A Feistel network permutes the next power of four; numbers that land outside 0..n-1 walk on until
they are inside (cycle walking), which keeps it a bijection. Everything is integer arithmetic on
uint64, so the order is the same on every machine and in every release of numpy.
"""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

ROUNDS = 8


def permute(indices: Int64[np.ndarray, " n"], size: int, key: str) -> Int64[np.ndarray, " n"]:
    """Where each index of 0..size-1 goes in the permutation that the key names.

    >>> sorted(permute(np.arange(5), 5, "seed 1").tolist())
    [0, 1, 2, 3, 4]
    """
    half = (max(1, (size - 1).bit_length()) + 1) // 2
    material = hashlib.blake2b(f"{size} {key}".encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(material, "<u8").astype(np.uint64)
    out = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def _feistel(
    values: UInt64[np.ndarray, " n"], half: int, keys: UInt64[np.ndarray, " rounds"]
) -> UInt64[np.ndarray, " n"]:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every bit moves every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
