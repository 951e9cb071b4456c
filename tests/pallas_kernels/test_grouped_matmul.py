"""Grouped matmul: every implementation against the reference, in values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul import xla as blocks
from jscale.pallas_kernels.grouped_matmul.choice import OPERATION
from jscale.pallas_kernels.grouped_matmul.reference import reference

FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error
OTHERS = [n for n, i in OPERATION.implementations.items() if n != "reference" and not i.kernel]


def near(found, wanted, limit):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 1e-6)


def everything(run, x, w, sizes, rows, back):
    """The product, and the gradients of the rows and of the matrices by a given cotangent."""

    def both(x, w, back):
        out, pull = jax.vjp(lambda x, w: run(x, w, sizes, rows), x, w)
        return out, *pull(back)

    return jax.jit(both)(x, w, back)


def named(name):
    return lambda x, w, sizes, rows: grouped_matmul(x, w, sizes, rows=rows, implementation=name)


def draw(seed, R, D, F, sizes, gathered=None, dtype=jnp.float32):
    """Numbers for groups of these sizes; `gathered` is how many rows are taken, of any."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (R, D)).astype(dtype)
    w = (jax.random.normal(keys[1], (len(sizes), D, F)) * D**-0.5).astype(dtype)
    rows = None if gathered is None else jax.random.randint(keys[2], (gathered,), 0, R)
    M = R if gathered is None else gathered
    back = jax.random.normal(keys[3], (M, F)).astype(dtype)
    return x, w, jnp.asarray(sizes, jnp.int32), rows, back


@st.composite
def problems(draw_):
    """Groups with nobody in them, with everybody, and rows that no group has."""
    M, E = draw_(st.integers(0, 40)), draw_(st.integers(1, 9))
    cuts = sorted(draw_(st.lists(st.integers(0, M), min_size=E, max_size=E)))
    sizes = np.diff([0, *cuts]).tolist()
    gathered = draw_(st.booleans())
    R = draw_(st.integers(1, 20)) if gathered else M
    D, F = draw_(st.sampled_from([(1, 1), (5, 3), (8, 16)]))
    return draw(draw_(st.integers(0, 99)), R, D, F, sizes, M if gathered else None)


@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=5)
@given(problem=problems())
def test_any_groups_equal_the_reference(name, problem):
    near(everything(named(name), *problem), everything(reference, *problem), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=100)
@given(problem=problems())
def test_many_groups_equal_the_reference(name, problem):
    near(everything(named(name), *problem), everything(reference, *problem), FLOAT32)


UGLY = {
    "one takes all": [0, 0, 33, 0],
    "none": [0, 0, 0, 0],
    "rest": [3, 0, 5, 1],
    "many": [1, 0, 2] * 11,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("sizes", UGLY.values(), ids=UGLY)
@pytest.mark.parametrize("each", [1, 2**26])
def test_ugly_groups(name, sizes, each, monkeypatch):
    monkeypatch.setattr(blocks, "WEIGHTS", each)  # one matrix at a time, or all
    problem = draw(0, 12, 7, 5, sizes, 33)
    near(everything(named(name), *problem), everything(reference, *problem), FLOAT32)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("gathered", [None, 120])
def test_bfloat16_is_near_float32(name, gathered):
    x, w, sizes, rows, back = draw(1, 100, 64, 32, [10, 0, 60, 30], gathered, jnp.bfloat16)
    found = everything(named(name), x, w, sizes, rows, back)
    x, w, back = (a.astype(jnp.float32) for a in (x, w, back))
    wanted = everything(reference, x, w, sizes, rows, back)
    near(found, wanted, BFLOAT16)
    assert all(a.dtype == jnp.bfloat16 for a in found)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_no_group_are_never_read(name):
    x, w, sizes, _, back = draw(2, 20, 6, 4, [3, 0, 8])
    x, back = x.at[11:].set(jnp.nan), back.at[11:].set(jnp.nan)
    out, dx, dw = everything(named(name), x, w, sizes, None, back)
    assert (out[11:] == 0).all() and (dx[11:] == 0).all()
    assert all(jnp.isfinite(a).all() for a in (out, dx, dw))
    assert (dw[1] == 0).all()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("around", ["vmap", "remat", "scan"])
def test_under_transformations(name, around):
    x, w, sizes, rows, back = draw(3, 12, 4, 6, [2, 5, 0, 3], 10)
    run = named(name)

    def wrapped(x, w, sizes, rows):
        one = lambda x: run(x, w, sizes, rows)
        if around == "vmap":
            return jax.vmap(one)(jnp.stack([x, x]))[1]
        if around == "remat":
            return jax.checkpoint(one)(x)
        return jax.lax.scan(lambda c, x: (c, one(x)), 0, x[None])[1][0]

    found = everything(wrapped, x, w, sizes, rows, back)
    near(found, everything(reference, x, w, sizes, rows, back), FLOAT32)


def test_groups_split_over_devices():
    """Inside shard_map every device has groups of its own."""
    x, w, sizes, _, back = draw(4, 32, 4, 6, [2, 6, 1, 7, 0, 8, 8, 0])
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.P("expert")
    split = jax.shard_map(grouped_matmul, mesh=mesh, in_specs=(each,) * 3, out_specs=each)
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
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        call(**wrong)
