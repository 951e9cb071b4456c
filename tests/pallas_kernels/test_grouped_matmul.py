"""Grouped matmul: every implementation against the reference, in values and all gradients."""

import jax
import jax.numpy as jnp
import pytest
from grouped_grid import (
    BFLOAT16,
    FLOAT32,
    UGLY,
    around,
    draw,
    everything,
    exact,
    named,
    near,
    poisoned,
    problems,
)
from hypothesis import given, settings

from jscale.errors import ConfigError
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul import xla as blocks
from jscale.pallas_kernels.grouped_matmul.choice import OPERATION, Call, preferred
from jscale.pallas_kernels.grouped_matmul.reference import reference

OTHERS = [n for n, i in OPERATION.implementations.items() if n != "reference" and not i.kernel]


@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=5)
@given(problem=problems())
def test_any_groups_equal_the_reference(name, problem):
    problem = draw(*problem)
    near(everything(named(name), *problem), everything(reference, *problem), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=100)
@given(problem=problems())
def test_many_groups_equal_the_reference(name, problem):
    problem = draw(*problem)
    near(everything(named(name), *problem), everything(reference, *problem), FLOAT32)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("sizes", UGLY.values(), ids=UGLY)
@pytest.mark.parametrize("each", [1, 2**26])
def test_ugly_groups(name, sizes, each, monkeypatch):
    monkeypatch.setattr(blocks, "WEIGHTS", each)  # one matrix at a time, or all
    problem = draw(0, 12, 7, 5, sizes, 33)
    run = lambda *given: named(name)(*given)  # traced anew, for the number of matrices
    near(everything(run, *problem), everything(reference, *problem), FLOAT32)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("gathered", [None, 120])
def test_bfloat16_is_near_float32(name, gathered):
    problem = draw(1, 100, 64, 32, [10, 0, 60, 30], gathered, jnp.bfloat16)
    found = everything(named(name), *problem)
    near(found, exact(*problem), BFLOAT16)
    assert all(a.dtype == jnp.bfloat16 for a in found)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("gathered", [None, 14])
def test_rows_of_no_group_are_never_read(name, gathered):
    problem = draw(2, 20, 6, 4, [3, 0, 8], gathered)
    out, dx, dw = found = everything(named(name), *poisoned(*problem))
    wanted = exact(*problem)
    near((out, dx[: len(wanted[1])], dw), wanted, FLOAT32)
    assert (found[0][11:] == 0).all() and (dw[1] == 0).all()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("way", ["vmap", "remat", "scan"])
def test_under_transformations(name, way):
    problem = draw(3, 12, 4, 6, [2, 5, 0, 3], 10)
    found = everything(around(way, named(name)), *problem)
    near(found, everything(reference, *problem), FLOAT32)


def test_groups_split_over_devices():
    """Inside shard_map every device has groups of its own."""
    x, w, sizes, _, back = draw(4, 32, 4, 6, [2, 6, 1, 7, 0, 8, 8, 0])
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.P("expert")
    split = jax.shard_map(
        grouped_matmul, mesh=mesh, in_specs=(each,) * 3, out_specs=each, check_vma=False
    )
    found = everything(lambda x, w, sizes, rows: split(x, w, sizes), x, w, sizes, None, back)
    near(found, everything(reference, x, w, sizes, None, back), FLOAT32)


def test_memory_follows_rows_not_groups():
    """Temporaries for many groups are near those of one product, far from one for each group."""

    def held(E):
        M, D, F = 4096, 64, 256
        shapes = [(M, D), (E, D, F), (E,)]
        x, w, sizes = (
            jax.ShapeDtypeStruct(s, d)
            for s, d in zip(shapes, (jnp.float32, jnp.float32, jnp.int32), strict=True)
        )
        loss = lambda x, w, sizes: grouped_matmul(x, w, sizes).sum()
        stats = jax.jit(jax.grad(loss, (0, 1))).lower(x, w, sizes).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes - w.size * 4  # but for the gradient's float32 sum

    assert held(32) < 4 * held(2)


def call(**changes):
    x, w, sizes, rows, _ = draw(0, 6, 4, 3, [2, 1], 5)
    given = {"x": x, "w": w, "sizes": sizes, "rows": rows} | changes
    return grouped_matmul(
        given["x"],
        given["w"],
        given["sizes"],
        rows=given["rows"],
        implementation=given.get("implementation"),
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(w=jnp.zeros((2, 5, 3))), "do not fit"),
        (dict(sizes=jnp.zeros(3, jnp.int32)), r"sizes \(3,\) must be \[2\]"),
        (dict(implementation="xl"), "did you mean 'xla'"),
        (dict(implementation="tpu"), "runs on tpu only, not on cpu"),
        (dict(implementation="triton"), "runs on gpu only, not on cpu"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        call(**wrong)


@pytest.mark.parametrize("platform, name", [("cpu", "xla"), ("gpu", "triton"), ("tpu", "tpu")])
def test_each_device_has_its_own(platform, name):
    call = Call(4096, 512, 256, 8, "bfloat16", "float32")
    assert preferred(call, Device(platform, "any"))[0][0] == name
    assert str(call) == "4096 rows by 8 of 512×256, bfloat16 by float32"
    assert "gathered rows" in str(call._replace(gathered=True))
