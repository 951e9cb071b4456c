"""A 64-bit fingerprint of an array that is the same on every mesh, layout and process count.

Each element's bits are mixed with a key of its global position by a bijection of 32-bit words, in
two independent lanes, and summed modulo 2^32. The sum does not depend on the order, hence not on
the layout; the bijection makes every change of one element visible in both lanes for certain, the
position makes exchanged rows visible (missed with probability 2^-64). Mixer: the finalizer of
MurmurHash3 (Appleby, public domain). Orbax itself notices no flipped bit.

Letters: A arrays.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from jscale.checkpoint.names import named_leaves
from jscale.errors import CheckpointError

# dtype -> the unsigned integer of the same width; what Orbax stores faithfully and no others.
WORDS = {
    "bool": "bool",
    **dict.fromkeys(("int8", "uint8"), "uint8"),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), "uint16"),
    **dict.fromkeys(("int32", "uint32", "float32"), "uint32"),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e3m4"), "uint8"),
    **dict.fromkeys(("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"), "uint8"),
    **dict.fromkeys(("int4", "float4_e2m1fn"), "uint4"),
}
LANES = ((0x9E3779B1, 0x7F4A7C15), (0xC2B2AE3D, 0x165667B1))  # odd: multiplier of words, of axes


@dataclass(frozen=True)
class Sums:
    """Fingerprints on their way: device arrays of sums, read when first needed."""

    seeds: Mapping[str, int]
    parts: tuple[tuple[tuple[str, ...], Any], ...]

    def read(self) -> dict[str, str]:
        """Waits for the devices and returns the fingerprints by name."""
        sums = {name: (0, 0) for name in self.seeds}
        for names, lanes in self.parts:
            sums.update(zip(names, np.asarray(lanes).tolist(), strict=True))
        return {name: finish(sums[name], seed) for name, seed in self.seeds.items()}


def fingerprint(tree: PyTree) -> dict[str, str]:
    """The fingerprint of every array of a tree, by name (`named_leaves`), as 16 hexadecimal digits.

    Equal for equal bits, shape and dtype, whatever the sharding; of two different arrays of one
    shape, equal with probability 2^-64. On several processes, all must call it.

    >>> fingerprint({"a": np.arange(3.0, dtype=np.float32)})
    {'a': 'd071e042e233cf9f'}
    """
    return start(named_leaves(tree)).read()


def start(arrays: Mapping[str, Any]) -> Sums:
    """Begins to fingerprint arrays on their devices, one compiled call a set of devices.

    Returns at once; the arrays may be donated afterwards.
    """
    groups: dict[Any, list[str]] = {}
    for name, array in arrays.items():
        if array.size:
            groups.setdefault(_replicated(array), []).append(name)
    parts = []
    for target, names in groups.items():
        parts.append((tuple(names), _sums(target)([arrays[name] for name in names])))
    seeds = {name: seed(array.shape, array.dtype) for name, array in arrays.items()}
    return Sums(seeds, tuple(parts))


def word_dtype(dtype: Any) -> str:
    """The unsigned integer that holds the bits of `dtype`; raises CheckpointError if none does.

    >>> word_dtype("bfloat16")
    'uint16'
    """
    name = jnp.dtype(dtype).name
    if name not in WORDS:
        raise CheckpointError(
            f"arrays of {name} cannot be saved; convert them to one of {', '.join(sorted(WORDS))}"
        )
    return WORDS[name]


def seed(shape: Sequence[int], dtype: Any) -> int:
    return zlib.crc32(f"{jnp.dtype(dtype).name}{tuple(shape)}".encode())


def finish(sums: Sequence[int], seed: int) -> str:
    """Folds shape and dtype in, so that empty and reshaped arrays differ as well."""
    mixed = [mix(np.array([total ^ seed], np.uint32))[0] for total in sums]
    return "".join(f"{int(half):08x}" for half in mixed)


def mix(x: Any) -> Any:
    """A bijection of 32-bit words in which every bit of the input stirs every bit of the output."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def axis_salt(lane: int, axis: int) -> np.uint32:
    return np.uint32((0x27D4EB2F * (2 * axis + lane + 1)) % 2**32)


def _replicated(array: Any) -> Any:
    """Where the sums of an array shall lie: on all devices of its mesh, or on its own device."""
    sharding = getattr(array, "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


@functools.lru_cache(maxsize=16)
def _sums(target: Any) -> Any:
    """The compiled sums of a list of arrays, of which each process can read the result."""
    return jax.jit(lambda arrays: jnp.stack([_lanes(a) for a in arrays]), out_shardings=target)


@jax.named_scope("fingerprint")
def _lanes(array: Array) -> UInt32[Array, "2"]:
    """Both lanes in one reduction: XLA then reads the array once (10 times faster on a CPU)."""
    words = _words(array)
    mixed = tuple(mix(_keyed(words, lane)) for lane in range(len(LANES)))
    zero = np.uint32(0)
    add = lambda total, term: (total[0] + term[0], total[1] + term[1])
    return jnp.stack(jax.lax.reduce(mixed, (zero, zero), add, tuple(range(words.ndim))))


def _words(array: Array) -> Array:
    word = word_dtype(array.dtype)
    if word != "bool":
        array = jax.lax.bitcast_convert_type(array, jnp.dtype(word))
    return array.astype(jnp.uint32)


def _keyed(words: Array, lane: int) -> Array:
    by_word, by_axis = (np.uint32(constant) for constant in LANES[lane])
    keyed = words * by_word
    for axis, size in enumerate(words.shape):
        assert size < 2**32, "an axis beyond 32 bits"
        keys = mix(jax.lax.iota(jnp.uint32, size) * by_axis + axis_salt(lane, axis))
        keyed = keyed + jax.lax.broadcast_in_dim(keys, words.shape, (axis,))
    return keyed
