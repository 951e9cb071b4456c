"""A small state of every kind of array, on any mesh of the eight devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree


class Moments(NamedTuple):
    count: jax.Array
    mu: dict
    nothing: None = None


def make_mesh(rows: int, columns: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: rows * columns]
    return jax.make_mesh((rows, columns), ("a", "b"), (AxisType.Auto,) * 2, devices=devices)


def make_state(rows: int = 4, columns: int = 2, seed: int = 0) -> PyTree:
    """Every dtype of a real state: float32, bfloat16, float8, integers, booleans, empty, scalar."""
    mesh = make_mesh(rows, columns)
    draw = np.random.default_rng(seed).standard_normal
    put = lambda array, *spec: jax.device_put(array, NamedSharding(mesh, P(*spec)))
    up = draw((64, 128)).astype(np.float32)
    return {
        "step": put(jnp.int32(seed)),
        "params": {
            "up": put(up, "a", "b"),
            "half": put(jnp.asarray(draw((8, 3)), jnp.bfloat16), "a"),
            "eighth": put(jnp.asarray(draw((16,)), jnp.float8_e4m3fn), "b"),
            "quarter": put(jnp.asarray(draw((8, 8)), jnp.int4), "a"),
            "empty": put(np.zeros((0, 8), np.float32), None, "b"),
        },
        "optimizer": (Moments(put(jnp.int32(7)), {"up": put(up**2, "b", "a")}), ()),
        "rng": put(jax.random.key_data(jax.random.key(seed))),
        "flags": put(draw(8) > 0, "a"),
    }


def shapes_of(state: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(found: PyTree, expected: PyTree) -> None:
    """Bit for bit, with the layout that was asked for."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.sharding == other.sharding
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
