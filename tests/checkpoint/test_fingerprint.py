"""Laws of the fingerprint: blind to the layout, awake to every bit, place, shape and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.states import make_mesh
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jscale.checkpoint.fingerprint import WORDS, fingerprint
from jscale.checkpoint.hostprint import CHUNK, host_fingerprint
from jscale.errors import CheckpointError

LAYOUTS = [
    (8, 1, ("a",)),
    (1, 8, (None, "b")),
    (4, 2, ("b", "a")),
    (2, 4, (("a", "b"),)),
    (1, 1, ()),
]


def one(array: object) -> str:
    return fingerprint({"x": array})["x"]


def random_bits(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    word = WORDS[dtype]
    high = {"bool": 2, "uint4": 16}.get(word) or 2 ** (8 * np.dtype(word).itemsize)
    bits = np.random.default_rng(seed).integers(0, high, shape, np.uint32)
    if word in ("bool", "uint4"):
        return bits.astype(np.uint8).view(jnp.dtype(dtype)) if word == "uint4" else bits == 1
    return bits.astype(word).view(jnp.dtype(dtype))


@pytest.mark.parametrize("rows, columns, spec", LAYOUTS)
def test_every_layout_has_the_fingerprint_of_the_host(rows, columns, spec):
    values = random_bits((8, 16, 24), "float32")
    array = jax.device_put(values, NamedSharding(make_mesh(rows, columns), P(*spec)))
    assert one(array) == host_fingerprint(values)


@pytest.mark.parametrize("dtype", sorted(WORDS))
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5)])
def test_every_dtype_and_rank_is_the_same_on_device_and_host(dtype, shape):
    values = random_bits(shape, dtype)
    assert one(jnp.asarray(values)) == host_fingerprint(values)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_every_single_flipped_bit_is_seen(data):
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "int8", "float8_e5m2", "uint16"]))
    values = random_bits((5, 12), dtype, data.draw(st.integers(0, 99)))
    flipped = values.copy()
    bits = flipped.reshape(-1).view(np.uint8)
    bits[data.draw(st.integers(0, bits.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert host_fingerprint(flipped) != host_fingerprint(values)


def test_a_flipped_bit_on_one_device_is_seen():
    sharding = NamedSharding(make_mesh(4, 2), P("a", "b"))
    values = random_bits((8, 16), "uint32")
    before = one(jax.device_put(values, sharding))
    for bit in range(32):
        flipped = values.copy()
        flipped[bit % 8, bit % 16] ^= np.uint32(1 << bit)
        assert one(jax.device_put(flipped, sharding)) != before


@given(st.integers(0, 2**32 - 1), st.permutations(range(6)), st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_exchanged_slices_are_seen(seed, order, axis):
    values = np.random.default_rng(seed).integers(0, 3, (6, 6, 6)).astype(np.int32)
    moved = np.take(values, order, axis)
    assert (host_fingerprint(moved) == host_fingerprint(values)) == np.array_equal(moved, values)


def test_shape_dtype_and_sign_of_zero_are_seen():
    zeros = np.zeros((4, 6), np.float32)
    others = [zeros.reshape(6, 4), zeros.reshape(24), zeros.view(np.int32), -zeros, zeros[:0]]
    prints = [host_fingerprint(array) for array in [zeros, *others]]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("shape", [(CHUNK + 3,), (3, CHUNK + 1), (CHUNK // 4 + 1, 5)])
def test_arrays_beyond_one_chunk_are_the_same_on_device_and_host(shape):
    values = random_bits(shape, "int8")
    assert one(jnp.asarray(values)) == host_fingerprint(values)


def test_a_dtype_that_cannot_be_saved_is_named():
    with pytest.raises(CheckpointError, match="arrays of complex64 cannot be saved"):
        fingerprint({"x": jnp.zeros(3, jnp.complex64)})
