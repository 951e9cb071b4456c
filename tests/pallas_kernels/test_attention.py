"""Attention against a loop over queries in float64, and its ugly cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.mesh import Axes, Layout, make_mesh
from jscale.models.attention import attend
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, attention
from jscale.pallas_kernels.attention.choice import IMPLEMENTATIONS, LONG, choose
from jscale.pallas_kernels.attention.xla import Tiles, blockwise


def by_hand(q, k, v, sees):
    """One query at a time, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    B, T, N, H = q.shape
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(B, T, N):
        group = n * k.shape[2] // N
        seen = np.asarray([sees(b, t, s) for s in range(k.shape[1])])
        if not seen.any():
            continue
        logits = k[b, :, group] @ q[b, t, n] / np.sqrt(H)
        weights = np.where(seen, np.exp(logits - logits[seen].max()), 0)
        out[b, t, n] = weights @ v[b, :, group] / weights.sum()
    return out


def draw(seed, B, T, S, heads, H):
    N, K = heads
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    return [jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True)]


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 99),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
    st.booleans(),
    st.none() | st.integers(1, 9),
    st.integers(0, 9),
)
def test_against_a_loop(seed, T, heads, causal, window, cut):
    mask = Mask(causal, window if causal else None)
    q, k, v = draw(seed, 2, T, T, heads, 4)
    segments = jnp.broadcast_to(jnp.where(jnp.arange(T) < cut, 1, 2), (2, T))

    def sees(b, t, s):
        back = t - s
        near = mask.window is None or back < mask.window
        return (back >= 0 or not causal) and near and (t < cut) == (s < cut)

    out = attention(q, k, v, mask, segments=(segments, segments))
    assert_close(out, by_hand(q, k, v, sees), SAME * 2)


def test_fewer_queries_than_keys_are_aligned_at_the_end():
    q, k, v = draw(0, 1, 3, 8, (2, 2), 4)
    wanted = by_hand(q, k, v, lambda b, t, s: s <= t + 5)
    assert_close(attention(q, k, v), wanted, SAME * 2)


def test_a_query_that_sees_nothing_gives_zero_and_no_gradient():
    q, k, v = draw(0, 1, 2, 2, (1, 1), 4)
    segments = jnp.asarray([[1, 2]]), jnp.asarray([[3, 2]])
    out = attention(q, k, v, segments=segments)
    assert (out[0, 0] == 0).all() and (out[0, 1] != 0).all()
    grads = jax.grad(lambda *x: attention(*x, segments=segments).sum(), (0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads) and (grads[0][0, 0] == 0).all()


def test_huge_scores_behind_the_mask_leave_gradients_finite():
    q, k, v = draw(1, 1, 4, 4, (1, 1), 4)
    k = k.at[0, 3].set(1e4 * q[0, 0, 0])  # the first query may not see this key
    grads = jax.grad(lambda *x: (attention(*x) ** 2).sum(), (0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


OTHERS = [name for name in IMPLEMENTATIONS if name != "reference"]
FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error


def frobenius(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # A gradient may be exactly 0: numbers are of size 1, and so is what they are compared with.
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 0.1 * np.sqrt(b.size))


def value_and_grads(run, q, k, v):
    slope = jax.random.normal(jax.random.key(9), q.shape)

    def loss(q, k, v):
        out = run(q, k, v)
        return (out.astype(jnp.float32) * slope).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def same(found, wanted, limit=FLOAT32):
    for a, b in zip(found, wanted, strict=True):
        assert np.isfinite(np.asarray(a, np.float32)).all()
        assert frobenius(a, b) <= limit


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 99),
    st.integers(1, 40),
    st.integers(0, 30),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([CAUSAL, FULL, Mask(window=1), Mask(window=7)]),
    st.sampled_from([Tiles(8, 8), Tiles(16, 8), Tiles(8, 24)]),
    st.booleans(),
    st.booleans(),
)
def test_tiles_equal_the_reference(seed, T, more, heads, mask, size, packed, placed):
    S, rng = T + more, np.random.default_rng(seed)
    q, k, v = draw(seed, 2, T, S, heads, 4)
    places = lambda n: jnp.asarray(rng.integers(0, S, (2, n)))
    groups = lambda n: jnp.asarray(np.sort(rng.integers(-1, 3, (2, n)), -1))
    positions = (places(T), places(S)) if placed else None
    segments = (groups(T), groups(S)) if packed else None
    options = dict(positions=positions, segments=segments)
    tiled = lambda q, k, v: blockwise(q, k, v, mask, positions, segments, size)
    found = value_and_grads(tiled, q, k, v)
    run = lambda q, k, v: attention(q, k, v, mask, implementation="reference", **options)
    same(found, value_and_grads(run, q, k, v))


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_is_near_the_float32_reference(name):
    q, k, v = draw(0, 2, 150, 150, (4, 2), 16)
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    found = value_and_grads(lambda *x: attention(*x, implementation=name), *low)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    exact = [x.astype(jnp.float32) for x in low]
    run = lambda *x: attention(*x, implementation="reference")
    same(found, value_and_grads(run, *exact), BFLOAT16)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_that_see_nothing_are_zero_and_poison_does_not_spread(name):
    q, k, v = draw(0, 1, 20, 20, (1, 1), 4)
    k = k.at[0, 19].set(1e4)
    groups = jnp.where(jnp.arange(20) < 6, 1, 2)[None], jnp.where(jnp.arange(20) < 9, 3, 2)[None]
    run = lambda *x: attention(*x, segments=groups, implementation=name)
    out, *grads = value_and_grads(run, q, k, v)
    assert (out[0, :9] == 0).all() and (grads[0][0, :9] == 0).all()
    same((out, *grads), value_and_grads(lambda *x: attention(*x, segments=groups), q, k, v))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("around", ["vmap", "remat", "scan"])
def test_under_transformations(name, around):
    q, k, v = draw(4, 2, 20, 20, (2, 1), 4)
    one = lambda *x: attention(*x, implementation=name)
    if around == "vmap":
        run = lambda *x: jax.vmap(one)(*(jnp.stack([a, 2 * a]) for a in x))[0]
    elif around == "remat":
        run = jax.checkpoint(one)
    else:
        run = lambda *x: jax.lax.scan(lambda c, a: (c, one(*a)), 0, [a[None] for a in x])[1][0]
    wanted = value_and_grads(lambda *x: attention(*x, implementation="reference"), q, k, v)
    same(value_and_grads(run, q, k, v), wanted)


def peak(program):
    stats = program.memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def test_tiles_hold_no_scores_of_all_queries():
    x = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.float32)

    def memory(name):
        run = lambda *x: value_and_grads(lambda *y: attention(*y, implementation=name), *x)
        return peak(jax.jit(run).lower(x, x, x).compile())

    assert memory("xla") < 4 * 2048 * 2048 < memory("reference")


MESHES = [dict(fsdp=8), dict(data=2, tensor=4), dict(data=2, context=2, tensor=2)]


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_mesh_each_device_attends_alone(axes, packed):
    B, T, heads = 8, LONG * 2, (4, 4)
    layout = Layout(make_mesh(**axes))
    q, k, v = draw(5, B, T, T, heads, 4)
    marks = jnp.broadcast_to(jnp.where(jnp.arange(T) < 77, 1, 2), (B, T)) if packed else None

    def run(q, k, v):
        with layout.active():
            return attend(q, k, v, CAUSAL, marks)

    seen = None if marks is None else (marks, marks)
    plain = lambda *x: attention(*x, segments=seen, implementation="reference")
    same(value_and_grads(run, q, k, v), value_and_grads(plain, q, k, v))
    where = [
        layout.activation_sharding(*names)
        for names in (
            Axes("batch", "length", "heads", "head"),
            *[Axes("batch", "keys", "kv_heads", "head")] * 2,
        )
    ]
    laid = [jax.device_put(x, s) for x, s in zip((q, k, v), where, strict=True)]
    text = jax.jit(run, out_shardings=where[0]).lower(*laid).compile().as_text() or ""
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [name for name in collectives if f" {name}(" in text]


def test_the_choice_follows_the_length_and_is_told_once(caplog):
    choose.cache_clear()
    with caplog.at_level("INFO"):
        assert [choose(n, n) for n in (1, LONG - 1, LONG, LONG)] == ["reference"] * 2 + ["xla"] * 2
    assert len(caplog.records) == 3


def call(heads=(2, 2), queries=2, **options):
    q, k, v = draw(0, 1, queries, 2, heads, 4)
    return attention(q, k, v, **options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: call(queries=3), "3 queries and 2 keys"),
        (lambda: call(heads=(3, 2)), "3 query heads are not a multiple of 2"),
        (lambda: call(implementation="refrence"), "did you mean 'reference'"),
        (lambda: Mask(window=0), "at least 1 token"),
        (lambda: Mask(causal=False, window=3), "must be causal"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
