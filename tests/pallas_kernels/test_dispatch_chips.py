"""Dispatch compiled for machines that are not here: what a device holds follows its own room."""

from functools import cache, partial

import absent
import jax
import jax.numpy as jnp
import pytest

from jscale.pallas_kernels.dispatch import AllToAll, Ragged, combine, dispatch
from jscale.pallas_kernels.grouped_matmul import grouped_matmul

SLOW = pytest.mark.slow
LEAVING = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
P = jax.P
ROWS, TOKENS, D, F = 4096, 1024, 512, 256  # that a device has room for; that it has; their size
# Ways to exchange where a device has room for so many rows, of n devices.
WAYS = {
    "all-to-all": lambda rows, n: AllToAll("expert", rows // n),
    "ragged": lambda rows, n: Ragged("expert", rows),
}


@cache
def held(machine, way, experts=8, devices=4, rows=ROWS):
    """Bytes that a device holds beside results in a layer's forward and backward pass."""
    mesh, each = absent.mesh_of(machine, expert=devices), P("expert")
    by = WAYS[way](rows, devices)

    def layer(choices, x, w, weights):
        received, ticket = dispatch(x, choices, experts, by)
        y = grouped_matmul(received.x, w, received.sizes, rows=received.rows)
        return combine(y, weights, ticket, by)

    def both(choices, *given):
        split = jax.shard_map(
            layer, mesh=mesh, in_specs=(each,) * 4, out_specs=each, check_vma=False
        )
        out, pull = jax.vjp(partial(split, choices), *given)
        return out, pull(out)

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, each))

    T, numbers = TOKENS * devices, jnp.bfloat16
    given = of(numbers, T, D), of(numbers, experts, D, F), of(numbers, T, 2)
    stats = absent.compiled_on(mesh, both, of(jnp.int32, T, 2), *given).memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


CORE = [("h100:4", "ragged")]
GRID = [
    pytest.param(machine, way, marks=() if (machine, way) in CORE else SLOW)
    for machine in ("h100:4", "v5p-8")
    for way in WAYS
]
TABLES = 2**18  # bytes of whole numbers, of which some are for each expert


@LEAVING
@pytest.mark.parametrize("machine, way", GRID)
def test_a_device_has_one_buffer_for_all_its_experts(machine, way):
    """Eight times the experts, or twice the devices and tokens, hold no more rows."""
    usual = held(machine, way)
    assert held(machine, way, experts=64) <= usual + TABLES
    assert usual <= held(machine, way, devices=2) + TABLES
    assert usual <= 6 * ROWS * D * 2


@SLOW
@LEAVING
@pytest.mark.parametrize("machine, most", [("h100:4", 2.2), ("v5p-8", 4)])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_held_follows_the_room(machine, most, way):
    usual, twice = held(machine, way), held(machine, way, rows=2 * ROWS)
    assert 1.5 * usual < twice < most * usual
