"""Grouped matmul's kernels, run step by step: memory that nobody wrote is NaN, copies may race."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped_grid import (
    BFLOAT16,
    FLOAT32,
    UGLY,
    around,
    draw,
    everything,
    exact,
    near,
    poisoned,
    sizes_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.grouped_matmul import grouped_matmul, tpu, triton
from jscale.pallas_kernels.grouped_matmul.reference import reference
from jscale.pallas_kernels.grouped_matmul.tiles import Programs, Sizes, Tiles, Warps
from jscale.pallas_kernels.grouped_matmul.visits import gathered, own, shared
from jscale.pallas_kernels.interpret import interpreted

SMALL = {"tpu": Sizes(*[Tiles(16, 16, 16)] * 3), "triton": Programs(*[Warps(16, 16, 16, 4, 2)] * 3)}
RUN = {"tpu": tpu.kernel, "triton": triton.kernel}
KERNELS = {name: partial(RUN[name], size=SMALL[name]) for name in RUN}
SLOW = pytest.mark.slow
TPU_SLOW = [pytest.param("tpu", marks=SLOW), "triton"]


def check(run, problem, limit=FLOAT32, memory=True):
    """Values and gradients are the reference's, and NaN in what no group has does not matter."""
    with interpreted(memory):
        out, dx, dw = everything(run, *poisoned(*problem))
    wanted = exact(*problem)
    near((out, dx[: len(wanted[1])], dw), wanted, limit)
    x, w, *_ = problem
    assert (out.dtype, dx.dtype, dw.dtype) == (x.dtype, x.dtype, w.dtype)


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None, max_examples=3)
@given(sizes=sizes_of(25, 3))
def test_any_groups_equal_the_reference(name, sizes):
    """Nothing is a multiple of its tile."""
    check(KERNELS[name], draw(0, 25, 20, 18, sizes))


@pytest.mark.parametrize("name", TPU_SLOW)
@settings(deadline=None, max_examples=6)
@given(sizes=sizes_of(37, 4), seed=st.integers(0, 9))
def test_any_groups_of_gathered_rows_equal_the_reference(name, sizes, seed):
    check(KERNELS[name], draw(seed, 9, 20, 18, sizes, 37))


@SLOW
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("rows, groups", [(1, 1), (16, 2), (48, 5), (33, 40), (100, 256)])
@pytest.mark.parametrize("taken", [False, True])
@settings(deadline=None, max_examples=3)
@given(data=st.data())
def test_many_groups_equal_the_reference(name, rows, groups, taken, data):
    D, F = {48: (32, 16), 100: (5, 7)}.get(rows, (5, 40))
    sizes = data.draw(sizes_of(rows, groups))
    problem = draw(1, 8 if taken else rows, D, F, sizes, rows if taken else None)
    check(KERNELS[name], problem, memory=groups < 256)  # a TPU's memory is played slowly


@pytest.mark.parametrize("name", TPU_SLOW)
@pytest.mark.parametrize(
    "sizes", [pytest.param(s, marks=SLOW if n == "many" else (), id=n) for n, s in UGLY.items()]
)
def test_ugly_groups(name, sizes):
    check(KERNELS[name], draw(0, 12, 7, 5, sizes, 33))


@pytest.mark.parametrize("name", TPU_SLOW)
@pytest.mark.parametrize("weights", [pytest.param(jnp.bfloat16, marks=SLOW), jnp.float32])
def test_bfloat16_is_near_float32(name, weights):
    x, w, *rest = draw(1, 10, 40, 33, [10, 0, 20, 3], 40, jnp.bfloat16)
    check(KERNELS[name], (x, w.astype(weights), *rest), BFLOAT16)


@pytest.mark.parametrize("name", TPU_SLOW)
@pytest.mark.parametrize("way", ["vmap", pytest.param("remat", marks=SLOW), "scan"])
def test_under_transformations(name, way):
    problem = draw(3, 12, 4, 6, [2, 5, 0, 3], 18)
    with interpreted(memory=way != "remat"):
        found = everything(around(way, KERNELS[name]), *problem)
    near(found, exact(*problem), FLOAT32)


@pytest.mark.parametrize("name", TPU_SLOW)
def test_groups_split_over_devices(name):
    """Inside shard_map every device has groups of its own, and rows that none of them has."""
    x, w, sizes, _, back = draw(4, 32, 4, 6, [2, 6, 1, 4, 0, 8, 0, 0])
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.P("expert")
    wrap = lambda run: (
        lambda x, w, sizes, rows: jax.shard_map(
            run, mesh=mesh, in_specs=(each,) * 3, out_specs=each, check_vma=False
        )(x, w, sizes)
    )
    with interpreted():
        found = everything(wrap(KERNELS[name]), x, w, sizes, None, back)
    near(found, everything(wrap(reference), x, w, sizes, None, back), FLOAT32)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (4, 0, 2, 4), (4, 3, 0, 4), (4, 3, 2, 0)])
def test_what_is_empty_gives_zeros(name, shape):
    M, E, D, F = shape
    problem = jnp.ones((M, D)), jnp.ones((E, D, F)), jnp.zeros(E, jnp.int32), None, jnp.ones((M, F))
    out, dx, dw = everything(KERNELS[name], *problem)
    assert out.shape == (M, F) and dx.shape == (M, D) and dw.shape == (E, D, F)
    assert not any(a.any() for a in (out, dx, dw))


@pytest.mark.parametrize("name", KERNELS)
def test_what_cannot_run_says_why(name):
    x, w, sizes, *_ = draw(0, 4, 4, 4, [4])
    wide = w.astype(jnp.float8_e4m3fn)
    with interpreted(), pytest.raises(ConfigError, match="not .*float8_e4m3fn"):
        grouped_matmul(x, wide, sizes, implementation=name)


TABLES = [jax.jit(make, static_argnums=(1, 2)) for make in (shared, gathered, own)]


@pytest.mark.parametrize("rows, groups, t", [(40, 7, 8), (1, 1, 4), (29, 12, 5), (6, 12, 4)])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_visits_have_each_row_once(rows, groups, t, data):
    """By tables alone: of tiles that are shared, gathered by group, and of a group's own."""
    sizes = np.asarray(data.draw(sizes_of(rows, groups)))
    given = jnp.asarray(sizes, jnp.int32)
    owner = np.repeat(np.arange(groups), sizes).tolist()

    found, by_group, turns = (jax.tree.map(np.asarray, make(given, rows, t)) for make in TABLES)
    written, multiplied = np.zeros(rows, int), np.full(rows, -1)
    for v, (tile, source, group, low, high) in enumerate(zip(*found[:5], strict=True)):
        mine = slice(max(low, tile * t), max(0, min(high, tile * t + t)))
        written[mine] += 1
        if v < found.live[0]:
            multiplied[mine] = group
            assert source == tile
    assert (written == 1).all()
    assert multiplied.tolist() == owner + [-1] * (rows - len(owner))

    summed = np.full(rows, -1)
    for source, group, low, high in zip(*by_group[1:5], strict=True):
        mine = slice(max(low, source * t), max(0, min(high, source * t + t)))
        assert (summed[mine] == -1).all()
        summed[mine] = group
    assert summed.tolist() == owner + [-1] * (rows - len(owner))
    assert (np.diff(by_group.group) >= 0).all() and set(by_group.group) == set(range(groups))

    turns = zip(*(x.tolist() for x in turns), strict=True)
    placed = [(group, r) for group, low, high in turns for r in range(low, min(high, low + t))]
    rest = [groups] * (rows - len(owner))
    assert placed == [(group, r) for r, group in enumerate(owner + rest)]
