"""Attention against a loop over queries in float64, its forms against each other, its ugly cases.

What is drawn, and what "equal" is, is in attention_grid.py: the tests of the kernels use it too.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_grid import MASKS, Case, agree, cases, cotangent, same, value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.mesh import Axes, Layout, make_mesh
from jscale.models.attention import attend
from jscale.pallas_kernels.attention import (
    CAUSAL,
    FULL,
    Mask,
    Places,
    Scores,
    attention,
    attention_with_lse,
    merge,
)
from jscale.pallas_kernels.attention.choice import LONG, OPERATION, _check
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.attention.sinks import afterwards
from jscale.pallas_kernels.attention.visits import Tiles, look
from jscale.pallas_kernels.attention.xla import blockwise
from jscale.pallas_kernels.implementation import _choose

OTHERS = [n for n, i in OPERATION.implementations.items() if n != "reference" and not i.kernel]
ALL = Case(  # every option at once
    cap=1.5, bias=(False, True), slopes=True, sinks=True, segments=True, value=5, more=7
)


def visible(mask, query, key):
    """Mask.sees once more, for one pair, in words of its own."""
    if mask.prefix and key < mask.prefix:
        return True
    if mask.causal and key > query:
        return False
    if mask.window is not None and abs(query - key) >= mask.window:
        return False
    return mask.chunk is None or query // mask.chunk == key // mask.chunk


def by_hand(case, inputs):
    """One query at a time, in float64: out and lse."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    places, slopes = case.places(), case.scores({}).slopes
    queries, keys = (np.asarray(x) for x in places.whole(B, T, S))
    mine, others = (np.asarray(x) for x in places.segments or (np.zeros((B, T)), np.zeros((B, S))))
    scale = 1 / np.sqrt(H) if case.scale is None else case.scale
    out, lse = np.zeros((B, T, N, V)), np.full((B, T, N), LEAST)
    for b, t, n in np.ndindex(B, T, N):
        made, values = [], []
        for s in range(S):
            if mine[b, t] != others[b, s] or not visible(case.mask, queries[b, t], keys[b, s]):
                continue
            x = scale * (q[b, t, n] @ k[b, s, n * K // N])
            x = x if case.cap is None else case.cap * np.tanh(x / case.cap)
            if case.bias is not None:
                bias = inputs["bias"]
                x += bias[b if len(bias) > 1 else 0, n if bias.shape[1] > 1 else 0, t, s]
            if slopes is not None:
                x -= float(slopes[n]) * abs(int(queries[b, t]) - int(keys[b, s]))
            made.append(x)
            values.append(v[b, s, n * K // N])
        if case.sinks:
            made.append(inputs["sinks"][n])
            values.append(np.zeros(V))
        if made:
            weights = np.exp(np.array(made) - max(made))
            out[b, t, n] = weights @ np.array(values) / weights.sum()
            lse[b, t, n] = max(made) + np.log(weights.sum())
    return out, lse


@settings(deadline=None, max_examples=15)
@given(
    cases(
        queries=st.integers(1, 9),
        more=st.integers(-5, 6),
        mask=st.sampled_from([*MASKS, Mask(chunk=2), Mask(False, window=2), Mask(window=3)]),
    )
)
def test_the_reference_equals_a_loop_and_its_gradients_the_loops_differences(case):
    inputs = case.inputs()
    wide = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
    (out, lse), grads = value_and_grads(lambda x: case.run("reference", x), inputs)
    found, sums = by_hand(case, wide)
    same((out, lse), (found, sums), 2e-6)

    # The loss of value_and_grads, by the loop, along one direction through all inputs.
    rng = np.random.default_rng(case.seed)
    way = {name: rng.standard_normal(x.shape) for name, x in wide.items()}
    slopes = [cotangent(i, x.shape) for i, x in enumerate((out, lse))]
    seen = sums > LEAST / 2

    def loss(step):
        given, more = by_hand(case, {name: x + step * way[name] for name, x in wide.items()})
        return (given * slopes[0]).sum() + (more * slopes[1])[seen].sum()

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    analytic = sum((np.asarray(grads[name], np.float64) * way[name]).sum() for name in wide)
    size = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))
    assert abs(numeric - analytic) <= 3e-5 * max(size, 1)


@settings(deadline=None, max_examples=15)
@given(cases(), st.sampled_from([Tiles(8, 8), Tiles(16, 8), Tiles(8, 24)]))
def test_tiles_equal_the_reference(case, size):
    agree(case, afterwards(partial(blockwise, size=size)))


@settings(deadline=None, max_examples=15)
@given(cases())
def test_all_scores_at_once_equal_the_reference(case):
    agree(case, "dense")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "case",
    [
        replace(ALL, queries=150, more=101, mask=Mask(window=90)),
        replace(ALL, queries=150, sinks=False, mask=Mask(False, chunk=64), dtype="bfloat16"),
        Case(queries=150, dtype="bfloat16", head=16, value=16),
        Case(queries=2, more=200, bias=(False, False)),
        # Off by more than the limit where sinks are added to results that were already rounded.
        Case(47, 2, 24, 0, (4, 2), 16, 16, sinks=True, dtype="bfloat16"),
    ],
    ids=["all", "all-bfloat16", "plain-bfloat16", "few queries", "sinks-bfloat16"],
)
def test_tiles_of_the_size_that_is_chosen(name, case):
    agree(case, name)


ONE = Case(rows=1, heads=(1, 1), head=4, value=4)


def draw(case=ONE):
    inputs = case.inputs()
    return inputs["q"], inputs["k"], inputs["v"]


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_rows_that_see_nothing_are_zero_and_poison_does_not_spread(name):
    q, k, v = draw()
    k = k.at[0, 19].set(1e4)
    groups = jnp.where(jnp.arange(20) < 6, 1, 2)[None], jnp.where(jnp.arange(20) < 9, 3, 2)[None]
    run = lambda name: (
        lambda *x: attention_with_lse(*x, places=Places(None, groups), implementation=name)
    )
    (out, lse), *grads = value_and_grads(run(name), q, k, v)
    assert (out[0, :9] == 0).all() and (lse[0, :9] == LEAST).all()
    assert (grads[0][0, :9] == 0).all() and (grads[1][0, :9] == 0).all()
    same(((out, lse), *grads), value_and_grads(run("reference"), q, k, v))


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_huge_scores_behind_the_mask_leave_gradients_finite(name):
    q, k, v = draw()
    k = k.at[0, 19].set(1e4 * q[0, 0])  # only the last query may see this key
    run = lambda *x: (attention(*x, implementation=name)[:, :19] ** 2).sum()
    grads = jax.grad(run, (0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads) and (grads[1][0, 19] == 0).all()


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_no_keys_at_all(name):
    q, k, v = draw()
    places = Places((jnp.zeros((1, 20), jnp.int32), jnp.zeros((1, 0), jnp.int32)))
    run = lambda q, k, v, s: attention_with_lse(q, k, v, CAUSAL, s, places, name)
    bias = jnp.zeros((1, 1, 20, 0))
    none = q, k[:, :0], v[:, :0], Scores(bias=bias)
    (out, lse), *grads = value_and_grads(run, *none)
    assert (out == 0).all() and (lse == LEAST).all() and (grads[0] == 0).all()
    assert grads[1].shape == none[1].shape and grads[2].shape == none[2].shape
    sinks = jnp.ones(1)
    out, lse = attention_with_lse(*none[:3], CAUSAL, Scores(sinks=sinks), places, name)
    assert (out == 0).all() and (lse == 1).all()
    whole = attention_with_lse(q, k, v, FULL)
    same(merge(whole, run(*none)), whole)
    same(merge(run(*none), whole), whole)


@settings(deadline=None, max_examples=5)
@given(
    cases(positions=st.just(True), bias=st.none(), sinks=st.just(False)),
    st.integers(0, 40),
    st.sampled_from(["reference", *OTHERS]),
)
def test_results_over_parts_of_the_keys_merge_to_that_over_all(case, at, name):
    inputs, places, scores = case.inputs(), case.places(), case.scores({})

    def over(part, x):
        cut = lambda pair: pair and (pair[0], pair[1][:, part])
        here = Places(cut(places.positions), cut(places.segments))
        k, v = x["k"][:, part], x["v"][:, part]
        return attention_with_lse(x["q"], k, v, case.mask, scores, here, name)

    found = value_and_grads(lambda x: merge(over(slice(at), x), over(slice(at, None), x)), inputs)
    wanted = value_and_grads(lambda x: case.run("reference", x), inputs)
    same(found, wanted)


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_no_gradient_flows_to_slopes(name):
    q, k, v = draw()
    run = lambda s: attention(q, k, v, scores=Scores(slopes=s), implementation=name).sum()
    slopes = jnp.ones(1)
    assert (jax.grad(run)(slopes) == 0).all() and run(slopes) != run(2 * slopes)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("around", ["vmap", "remat", "scan"])
def test_under_transformations(name, around):
    one = lambda x: ALL.run(name, x)
    first = lambda many: jax.tree.map(lambda a: a[0], many)
    if around == "vmap":
        run = lambda x: first(jax.vmap(one)(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), x)))
    elif around == "remat":
        run = jax.checkpoint(one)
    else:
        many = lambda x: jax.tree.map(lambda a: a[None], x)
        run = lambda x: first(jax.lax.scan(lambda c, a: (c, one(a)), 0, many(x))[1])
    found = value_and_grads(run, ALL.inputs())
    hide = lambda given: jax.tree.map(lambda a: jnp.where(a < LEAST / 2, 0, a), given)
    same(hide(found), hide(value_and_grads(lambda x: ALL.run("reference", x), ALL.inputs())))


def memory(run, *inputs):
    """Bytes of intermediate results of a value and its gradients."""
    loss = lambda *x: run(*x).astype(jnp.float32).sum()
    every = tuple(range(len(inputs)))
    program = jax.jit(jax.value_and_grad(loss, every)).lower(*inputs).compile()
    stats = program.memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def test_tiles_hold_no_scores_of_all_queries():
    x = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.float32)
    run = lambda name: lambda *y: attention(*y, implementation=name)
    assert memory(run("xla"), x, x, x) < 4 * 2048 * 2048 < memory(run("reference"), x, x, x)


def test_all_scores_at_once_keep_fewer_for_the_backward_pass():
    # In a loop over layers, where what is kept is stacked.
    x = jax.ShapeDtypeStruct((16, 4, 64, 2, 8), jnp.float32)

    def run(name):
        layer = lambda carry, qkv: (carry, attention(*qkv, implementation=name))
        return lambda *qkv: jax.lax.scan(layer, 0.0, qkv)[1]

    scores = 4 * 16 * 4 * 2 * 64 * 64
    assert memory(run("dense"), x, x, x) < 2 * scores < memory(run("reference"), x, x, x)


def test_a_shared_bias_has_its_gradient_in_the_memory_of_one():
    x = jax.ShapeDtypeStruct((4, 512, 4, 8), jnp.float32)
    bias = jax.ShapeDtypeStruct((1, 1, 512, 512), jnp.float32)
    run = lambda name: (
        lambda q, k, v, b: attention(q, k, v, scores=Scores(bias=b), implementation=name)
    )
    each = 4 * 512 * 512
    assert memory(run("xla"), x, x, x, bias) < 8 * each
    assert memory(run("reference"), x, x, x, bias) > 16 * each


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("placed", [False, True])
def test_tiles_are_visited_where_the_mask_shows_something_and_nowhere_else(mask, placed):
    T, S, size = 52, 76, Tiles(8, 12)
    positions = np.arange(S - T, S)[None], np.arange(S)[None]
    places = Places((jnp.asarray(positions[0]), jnp.asarray(positions[1]))) if placed else Places()
    visits = look(mask, size, (T, S), places)
    seen = np.array([[visible(mask, p, r) for r in positions[1][0]] for p in positions[0][0]])
    tiled = np.pad(seen, ((0, -T % 8), (0, -S % 12))).reshape(7, 8, 7, 12)
    seen = np.asarray(tiled.any((1, 3)))
    for i, count in enumerate(np.asarray(visits.count)):
        assert visits.order[i, :count].tolist() == np.flatnonzero(seen[i]).tolist()


@settings(deadline=None, max_examples=200)
@given(
    st.builds(
        Mask,
        st.booleans(),
        st.none() | st.integers(1, 9),
        st.none() | st.integers(1, 9),
        st.integers(0, 9),
    ),
    *[st.lists(st.integers(-9, 30), min_size=1, max_size=4)] * 2,
)
def test_what_a_mask_says_of_tiles_holds_for_each_pair(mask, queries, keys):
    found = [visible(mask, p, r) for p in queries for r in keys]
    assert found == [bool(mask.sees(p, r)) for p in queries for r in keys]
    tile = min(queries), max(queries), min(keys), max(keys)
    assert mask.some(*tile) or not any(found)
    assert all(found) or not mask.every(*tile)


MESHES = [dict(fsdp=8), dict(data=2, tensor=4)]


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_mesh_each_device_attends_alone(axes, packed):
    B, T = 8, LONG * 2
    layout = Layout(make_mesh(**axes))
    q, k, v = draw(Case(seed=5, rows=B, queries=T, heads=(4, 4), head=4, value=4))
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
            *[Axes("batch", "length", "kv_heads", "head")] * 2,
        )
    ]
    laid = [jax.device_put(x, s) for x, s in zip((q, k, v), where, strict=True)]
    text = jax.jit(run, out_shardings=where[0]).lower(*laid).compile().as_text() or ""
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [name for name in collectives if f" {name}(" in text]


def test_the_choice_follows_the_length_and_is_told_once(caplog):
    _choose.cache_clear()
    with caplog.at_level("INFO"):
        for n in (1, LONG - 1, LONG, LONG):
            jax.eval_shape(attention, *draw(Case(queries=n)))
    names = [record.getMessage().split("by ")[1][:6] for record in caplog.records]
    assert names == ["'dense", "'dense", "'xla':"]


def call(heads=(2, 2), queries=2, **options):
    keys = options.pop("keys", (1, 2, heads[1], 4))
    values = options.pop("values", (1, 2, heads[1], 3))
    q, k, v = jnp.zeros((1, queries, heads[0], 4)), jnp.zeros(keys), jnp.zeros(values)
    # Directly too: the tests' own check of shapes comes before it, where users have none.
    places = Places(options.get("positions"), options.get("segments"))
    _check(q, k, v, options.get("scores", Scores()), places)
    return attention(q, k, v, **options)


def check_dtypes(q, k):
    one, other = (jnp.zeros((1, 2, 1, 4), dtype) for dtype in (q, k))
    _check(one, other, other, Scores(), Places())


def pair(*shapes):
    return tuple(jnp.zeros(shape, jnp.int32) for shape in shapes)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: call(queries=3), "3 queries and 2 keys cannot be aligned: give positions"),
        (lambda: call(heads=(3, 2)), "3 query heads are not a multiple of 2 key/value heads"),
        (lambda: call(heads=(3, 0)), "3 query heads are not a multiple of 0 key/value heads"),
        (lambda: call(keys=(1, 2, 2, 5)), r"q \(1, 2, 2, 4\), k \(1, 2, 2, 5\) and v .*fit"),
        (lambda: call(keys=(2, 2, 2, 4)), r"k \(2, 2, 2, 4\)"),
        (lambda: call(values=(1, 3, 2, 4)), r"v \(1, 3, 2, 4\) do not fit"),
        (lambda: check_dtypes("int32", "int32"), "q int32, .* must be of one floating dtype"),
        (lambda: check_dtypes("bfloat16", "float32"), "q bfloat16, k float32 and v float32 must"),
        (lambda: call(positions=pair((1, 2), (1, 3))), r"positions \(1, 2\) and \(1, 3\) must be"),
        (lambda: call(segments=pair((1, 1), (1, 2))), r"segments \(1, 1\) and \(1, 2\) must be"),
        (lambda: call(scores=Scores(slopes=jnp.ones(3))), r"slopes \(3,\) must be of 2 heads"),
        (lambda: call(scores=Scores(sinks=jnp.ones(1))), r"sinks \(1,\) must be of 2 heads"),
        (lambda: call(scores=Scores(bias=jnp.ones((1, 1, 2, 3)))), r"bias \(1, 1, 2, 3\) must be"),
        (lambda: call(scores=Scores(bias=jnp.ones((1, 3, 2, 2)))), r"N=2, T=2, S=2"),
        (lambda: call(implementation="refrence"), "did you mean 'reference'"),
        (lambda: Mask(window=0), "a mask's window must be at least 1 token long, not 0"),
        (lambda: Mask(chunk=0), "a mask's chunk must be at least 1 token long, not 0"),
        (lambda: Mask(prefix=-1), "prefix must be 0 tokens or more, not -1"),
        (lambda: Scores(cap=0.0), "cap of attention's scores must be positive, not 0.0"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
