"""Linear cross-entropy's kernels, run step by step: memory that nobody wrote is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_grid import frobenius, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.interpret import interpreted
from jscale.pallas_kernels.linear_cross_entropy import linear_cross_entropy, tpu, triton
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan
from jscale.pallas_kernels.linear_cross_entropy.reference import reference
from jscale.pallas_kernels.linear_cross_entropy.tiles import Programs, Sizes, Tiles, Warps

SIZES = {"tpu": Sizes(*[Tiles(8, 16, 16)] * 2), "triton": Programs(*[Warps(16, 16, 16, 4, 2)] * 2)}
RUN = {"tpu": tpu.kernel, "triton": triton.kernel}
FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error
SLOW = pytest.mark.slow
TPU_SLOW = [pytest.param("tpu", marks=SLOW), "triton"]


def draw(seed, M, D, V, dtype=jnp.float32, weights=jnp.float32):
    """Hidden states, kernel, targets (some outside the vocabulary), cotangents of both results."""
    keys = jax.random.split(jax.random.key(seed), 5)
    hidden = jax.random.normal(keys[0], (M, D)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (D, V)) * 2 * D**-0.5).astype(weights)
    targets = jax.random.randint(keys[2], (M,), -2, V + 2)
    return hidden, kernel, targets, *(jax.random.normal(key, (M,)) for key in keys[3:])


def everything(run, hidden, kernel, targets, *by):
    """Log-probabilities, normalizers, and the gradients that the cotangents give, as one program.

    Made anew each time, so that it is traced where kernels are interpreted.
    """

    def both(hidden, kernel):
        out, pull = jax.vjp(lambda h, w: run(h, w, targets), hidden, kernel)
        return *out, *pull(by)

    return jax.jit(both)(hidden, kernel)


def kernel_of(name, cap=None, smoothing=0.0, tokens=9, split=()):
    plan = Plan(tokens, cap, 0.0, split, smoothing)
    return lambda h, w, targets: RUN[name](plan, h, w, targets, None, SIZES[name])


def exact(cap=None, smoothing=0.0):
    wide = lambda x: x.astype(jnp.float32)
    return lambda h, w, targets: reference(wide(h), wide(w), targets, cap, smoothing)


def near(found, wanted, limit=FLOAT32):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and frobenius(a, b) <= limit


def check(name, problem, cap=None, smoothing=0.0, limit=FLOAT32):
    with watched():
        found = everything(kernel_of(name, cap, smoothing), *problem)
    near(found, everything(exact(cap, smoothing), *problem), limit)
    assert [x.dtype for x in found[2:]] == [x.dtype for x in problem[:2]]


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("cap, smoothing", [(None, 0.0), (3.0, 0.2)])
def test_values_and_gradients_equal_the_reference(name, cap, smoothing):
    """Nothing is a multiple of its tile, and the gradient is made of three chunks."""
    check(name, draw(0, 21, 19, 37), cap, smoothing)


@SLOW
@pytest.mark.parametrize("name", RUN)
@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 8, 16, 40]),
    st.sampled_from([1, 16, 50]),
    st.sampled_from([1, 16, 32, 70, 257]),
    st.sampled_from([None, 3.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_values_and_gradients_on_the_grid(name, seed, M, D, V, cap, smoothing):
    check(name, draw(seed, M, D, V), cap, smoothing)


@pytest.mark.parametrize("name", TPU_SLOW)
@pytest.mark.parametrize("weights", [pytest.param(jnp.bfloat16, marks=SLOW), jnp.float32])
def test_bfloat16_is_near_float32(name, weights):
    check(name, draw(1, 20, 40, 33, jnp.bfloat16, weights), None, 0.1, BFLOAT16)


def around(way, run):
    """The same numbers by way of a transformation."""

    def inside(h, w, targets):
        one = lambda h: run(h, w, targets)
        if way == "vmap":
            return jax.tree.map(lambda x: x[1], jax.vmap(one)(jnp.stack([2 * h, h])))
        if way == "remat":
            return jax.checkpoint(one)(h)
        return jax.tree.map(lambda x: x[0], jax.lax.scan(lambda c, h: (c, one(h)), 0, h[None])[1])

    return inside


@pytest.mark.parametrize("name", TPU_SLOW)
@pytest.mark.parametrize("way", ["vmap", "remat", "scan"])
def test_under_transformations(name, way):
    problem = draw(2, 10, 4, 20)
    with interpreted(memory=way != "remat"):
        found = everything(around(way, kernel_of(name)), *problem)
    near(found, everything(exact(), *problem))


@pytest.mark.parametrize("name", RUN)
def test_a_split_vocabulary(name):
    """Each device has a part: a target is of one of them, or of none."""
    problem = draw(3, 10, 6, 40)
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    one = kernel_of(name, smoothing=0.1, split=("tensor",))
    split = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(jax.P(), jax.P(None, "tensor"), jax.P()),
        out_specs=(jax.P(), jax.P()),
        check_vma=False,
    )
    with interpreted():
        found = everything(split, *problem)
    near(found, everything(exact(smoothing=0.1), *problem))


@pytest.mark.parametrize("name", TPU_SLOW)
def test_what_does_not_count_may_be_anything(name):
    """Rows that a sequence is filled up with, and targets of −100, reach no other token."""
    hidden, kernel, targets, *by = draw(4, 12, 8, 20)
    counts = jnp.arange(12) % 3 != 0
    targets = jnp.clip(targets, 0, 19)
    by = [jnp.where(counts, x, 0.0) for x in by]
    with interpreted():
        found = everything(kernel_of(name), hidden, kernel, jnp.where(counts, targets, -100), *by)
    kept = everything(exact(), hidden[counts], kernel, targets[counts], *(x[counts] for x in by))
    assert all(np.isfinite(x).all() for x in found)
    near((*(x[counts] for x in found[:3]), found[3]), kept)
    assert not found[2][~counts].any()


@pytest.mark.parametrize("name", RUN)
def test_what_cannot_run_says_why(name):
    hidden, kernel, targets, *_ = draw(0, 4, 4, 5)
    wide = kernel.astype(jnp.float8_e4m3fn)
    with interpreted(), pytest.raises(ConfigError, match="not .*float8_e4m3fn"):
        linear_cross_entropy(hidden, wide, targets, implementation=name)
    with pytest.raises(ConfigError, match=f"{name!r} runs on .pu only, not on cpu"):
        linear_cross_entropy(hidden, kernel, targets, implementation=name)


@pytest.mark.parametrize("name", RUN)
def test_the_public_function_takes_any_dimensions_and_none(name):
    hidden, kernel, targets, *_ = draw(5, 6, 8, 20)
    rows = hidden.reshape(2, 3, 8), kernel, targets.reshape(2, 3)
    with interpreted():
        found = linear_cross_entropy(*rows, implementation=name)
        empty = linear_cross_entropy(hidden[:0], kernel, targets[:0], implementation=name)
    wanted = linear_cross_entropy(*rows, implementation="reference")
    near(found, wanted)
    assert [x.shape for x in empty] == [(0,), (0,)]
