"""Decode attention against a loop in float64, and its forms against each other."""

import logging
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_grid import (
    ALL,
    SLOW,
    STORED,
    Case,
    agree,
    by_hand,
    cases,
    keep,
    over_layers,
    plain,
    right,
    same,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, Scores, attention
from jscale.pallas_kernels.decode_attention import (
    Pages,
    Sequences,
    decode_attention,
    quantise,
    write,
)
from jscale.pallas_kernels.decode_attention.choice import _check
from jscale.pallas_kernels.decode_attention.parts import Size, cut, most
from jscale.pallas_kernels.decode_attention.xla import paged, sizes
from jscale.pallas_kernels.implementation import _choose


@settings(deadline=None, max_examples=4)
@given(cases())
def test_the_reference_equals_a_loop(case):
    q, pages, sequences = case.inputs()
    found = right(q, pages, sequences, case.mask, scores=case.more())
    same(found, by_hand(case), 2e-6)


IN_PARTS = st.sampled_from([None, Size(1, 2), Size(4, 1), Size(2, 3)])


@settings(deadline=None, max_examples=3)
@given(cases(), IN_PARTS)
def test_parts_equal_the_reference(case, size):
    agree(case, partial(paged, size=size))


@SLOW
@settings(deadline=None, max_examples=40)
@given(cases(stored=st.sampled_from(["float32", *STORED])), IN_PARTS)
def test_parts_equal_the_reference_on_the_large_grid(case, size):
    agree(case, partial(paged, size=size))


@pytest.mark.parametrize(
    "dtype, stored",
    [
        ("bfloat16", "int8"),
        ("float32", "float8_e4m3fn"),
        ("float32", "bfloat16"),
        pytest.param("float32", "int8", marks=SLOW),
        pytest.param("bfloat16", "float8_e4m3fn", marks=SLOW),
        pytest.param("bfloat16", "bfloat16", marks=SLOW),
    ],
)
def test_quantised_pages_equal_the_reference_on_the_same_pages(dtype, stored):
    agree(replace(Case(scores=ALL, mask=Mask(window=7)), stored=stored, dtype=dtype), paged)


def test_one_sequence_equals_attention_and_may_come_in_pieces():
    case = Case(spans=((0, 13),), gaps=(0, 0), value=8, most=4)
    (q, pages, _), [(k, v)] = case.inputs(), case.contexts()
    wanted = jax.jit(attention)(q[None], jnp.asarray(k)[None], jnp.asarray(v)[None])[0]
    pages, at = jax.tree.map(jnp.zeros_like, pages), 0
    table = jnp.asarray([[4, 1, 3, 2]])

    @jax.jit
    def step(pages, q, k, v, length):
        sequences = Sequences(jnp.asarray([0, len(q)]), jnp.asarray([length]), table)
        pages = write(pages, k, v, sequences)
        return pages, decode_attention(q, pages, sequences)

    outs = []
    for many in (6, 1, 6):
        piece = slice(at, at + many)
        at += many
        pages, out = step(pages, q[piece], jnp.asarray(k[piece]), jnp.asarray(v[piece]), at)
        outs.append(out)
    same(jnp.concatenate(outs), wanted)


@pytest.mark.parametrize("stored", ["float32", *STORED])
def test_what_is_written_lies_in_its_places_and_nowhere_else(stored):
    case = Case(value=8, stored=stored)
    q, _, sequences = case.inputs()
    shape = (2 + 5 * case.most, 2, case.places, 8)
    filled = jax.tree.map(lambda x: x + 3, Pages.empty(shape, "float32"))
    before = keep(filled.k, filled.v, stored)
    rng = np.random.default_rng(5)
    k, v = (jnp.asarray(rng.normal(size=(len(q), 2, 8)), jnp.float32) for _ in "kv")
    pages = jax.jit(write)(before, k, v, sequences)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), pages) == jax.tree.map(
        lambda x: (x.shape, x.dtype), before
    )
    wanted, values = np.array(plain(before).k), np.array(plain(before).v)
    at = case.gaps[0]
    for s, (old, new) in enumerate(case.spans):
        for key in range(old, old + new):
            page, place = int(sequences.table[s, key // case.places]), key % case.places
            wanted[page, :, place], values[page, :, place] = k[at], v[at]
            at += 1
    limit = {"float32": 1e-9, "int8": 8e-3, "float8_e4m3fn": 4e-2, "bfloat16": 4e-3}[stored]
    same(plain(pages).k, wanted, limit)
    same(plain(pages).v, values, limit)


def test_nothing_is_written_beyond_the_table_or_the_pages():
    pages = Pages.empty((2, 1, 2, 4), "float32")
    table = jnp.asarray([[1, 7], [-1, 0]])
    sequences = Sequences(jnp.asarray([0, 6, 8]), jnp.asarray([6, 2]), table)
    ones = jnp.ones((8, 1, 4))
    found = jax.jit(write)(pages, ones, ones, sequences)
    assert (found.k[1] == 1).all() and (found.k[0] == 0).all()


@pytest.mark.parametrize("stored, step", [("int8", 0.5 / 127), ("float8_e4m3fn", 1 / 16)])
def test_quantisation_is_as_near_as_it_says(stored, step):
    x = (
        jax.random.normal(jax.random.key(0), (500, 3, 16))
        * jnp.geomspace(1e-6, 1e6, 500)[:, None, None]
    )
    x = x.at[7, 1].set(0.0)
    found, scales = quantise(x, stored)
    peak, error = (
        jnp.abs(x).max(-1, keepdims=True),
        jnp.abs(found.astype(jnp.float32) * scales[..., None] - x),
    )
    allowed = peak if stored == "int8" else jnp.maximum(jnp.abs(x), 2.0**-6 * peak / 448)
    assert (error <= step * allowed * 1.0001).all() and error.max() > 0
    assert (found[7, 1].astype(jnp.float32) == 0).all() and bool(jnp.isfinite(scales).all())


def test_attention_over_quantised_pages_is_near_that_over_whole_ones():
    case, run = Case(spans=((40, 1), (0, 30), (63, 1)), most=16, head=32, value=32), right
    over = lambda stored: run(*replace(case, stored=stored).inputs(), CAUSAL, scores=Scores())
    wanted = over("float32")
    for stored, limit in (("int8", 1e-2), ("float8_e4m3fn", 5e-2)):
        found = over(stored)
        same(found, wanted, limit)
        assert not np.allclose(found, wanted, atol=1e-6)


def test_how_many_sequences_there_are_may_change_without_a_new_program():
    traced = []

    @jax.jit
    def run(q, pages, sequences):
        traced.append(1)
        return decode_attention(q, pages, sequences)

    case = Case(spans=((5, 1), (3, 6), (9, 1)), gaps=(0, 0))
    other = Case(spans=((2, 3), (0, 0), (0, 0)), gaps=(0, 5), seed=2)
    nobody = Case(spans=((0, 0),) * 3, gaps=(8, 0))
    for one in (case, other, nobody):
        given = one.inputs()
        same(run(*given), right(*given, CAUSAL, scores=Scores()))
    assert len(traced) == 1


def test_tokens_of_a_sequence_without_length_are_nobodys():
    q, pages, (starts, lengths, table) = Case().inputs()
    none = Sequences(starts, jnp.zeros_like(lengths), table)
    for name in ("xla", "reference"):
        run = partial(decode_attention, mask=FULL, implementation=name)
        assert (jax.jit(run)(q, pages, none) == 0).all()


@pytest.mark.parametrize("name, inside", [("reference", "vmap"), ("xla", "vmap"), ("xla", "scan")])
def test_over_layers(name, inside):
    over_layers(name, inside, Case(stored="int8"))


def test_heads_may_be_split_over_devices():
    q, pages, sequences = Case(stored="int8").inputs()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("tensor",))
    spec, whole = jax.sharding.PartitionSpec(None, "tensor"), jax.sharding.PartitionSpec()
    run = lambda *x: decode_attention(*x)
    split = jax.shard_map(
        run, mesh=mesh, in_specs=(spec, spec, whole), out_specs=spec, check_vma=False
    )
    wanted = right(q, plain(pages), sequences, CAUSAL, scores=Scores())
    same(jax.jit(split)(q, pages, sequences), wanted)


def test_only_the_reference_has_a_gradient():
    q, pages, sequences = Case().inputs()
    loss = lambda name: lambda q: decode_attention(q, pages, sequences, implementation=name).sum()
    assert bool(jnp.isfinite(jax.jit(jax.grad(loss("reference")))(q)).all())
    with pytest.raises(ConfigError, match="has no gradient"):
        jax.jit(jax.grad(loss("xla")))(q)


def test_nothing_in_gives_nothing_out():
    q, pages, sequences = Case().inputs()
    assert decode_attention(q[:0], pages, sequences).shape == (0, 4, 6)
    empty = Sequences(sequences.starts[:1], sequences.lengths[:0], sequences.table[:0])
    assert (decode_attention(q, pages, empty) == 0).all()


def test_memory_is_not_that_of_all_scores():
    spans = ((4000, 1),) * 16
    case = Case(spans, gaps=(0, 0), heads=(8, 8), places=16, most=256, head=4, value=4)
    shapes = jax.eval_shape(case.inputs)
    stats = jax.jit(decode_attention).lower(*shapes).compile().memory_analysis()
    assert stats is not None and stats.temp_size_in_bytes < 16 * 4096 * 8 * 8 * 4


def test_parts_of_sequences_and_tiles():
    case = Case(spans=((5, 1), (0, 0), (3, 6), (9, 1)), gaps=(1, 2), mask=Mask(window=3))
    sequences = case.inputs()[2]
    parts = jax.jit(lambda x: cut(x, 11, case.places, case.mask, Size(4, 1)))(sequences)
    assert parts.count == 4 and parts.tile.size == most(11, 4, Size(4, 1)) == 6
    assert parts.tile.tolist() == [0, 0, 1, 2, 2, 2]
    assert parts.sequence.tolist()[:4] == [0, 2, 2, 3]
    assert parts.begin.tolist()[:4] == [1, 2, 4, 8] and parts.end.tolist()[:4] == [2, 4, 8, 9]
    assert parts.first.tolist()[:4] == [0, 0, 0, 1] and parts.last.tolist()[:4] == [2, 2, 3, 3]
    assert (parts.begin[4:] == parts.end[4:]).all()


def test_tiles_are_about_a_sequences_share():
    assert sizes(8, 8, 64, 16) == Size(1, 8) and sizes(576, 65, 4, 512) == Size(16, 1)


def test_the_choice_is_logged_once(caplog):
    _choose.cache_clear()
    with caplog.at_level(logging.INFO, "jscale.pallas_kernels"):
        for _ in range(2):
            jax.eval_shape(decode_attention, *Case().inputs())
    [record] = caplog.records
    assert "decode attention of 15 tokens of 5 sequences" in record.getMessage()
    assert "'xla'" in record.getMessage()


def test_wrong_options_are_named():
    given = Case().inputs()
    for name, message in (("xlaa", "did you mean 'xla'"), ("xla ", "no implementation")):
        with pytest.raises(ConfigError, match=message):
            decode_attention(*given, implementation=name)


def changed(pages=None, sequences=None, scores=None, **q):
    """The arguments of a call after some changes."""
    given = Case(stored="int8").inputs()
    return (
        q.get("q", given[0]),
        given[1]._replace(**(pages or {})),
        given[2]._replace(**(sequences or {})),
        Scores(**(scores or {})),
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(q=jnp.ones((15, 4))), r"\[T, N, H\]"),
        (dict(q=jnp.ones((15, 4, 5))), "heads of q of 5"),
        (dict(q=jnp.ones((15, 3, 8))), "3 query heads"),
        (dict(q=jnp.ones((15, 4, 8), jnp.int32)), "q must be of a floating dtype"),
        (dict(pages=dict(v=jnp.ones((3, 2, 4, 6), jnp.int8))), r"\[P, K, C, V\]"),
        (dict(pages=dict(v=jnp.ones((22, 2, 4, 6)))), "must both be of one of"),
        (dict(pages=dict(k_scales=None)), "needs pages.k_scales"),
        (dict(pages=dict(v_scales=jnp.ones((22, 4, 2)))), r"pages.v_scales, \(22, 4, 2\)"),
        (dict(sequences=dict(starts=jnp.arange(5))), r"starts \(5,\)"),
        (dict(sequences=dict(table=jnp.ones((5, 4)))), "sequences.table must be integers"),
        (dict(scores=dict(bias=jnp.ones((1, 1, 15, 15)))), "scores.bias is not possible"),
        (dict(scores=dict(sinks=jnp.ones(3))), "scores.sinks"),
    ],
)
def test_wrong_calls_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        _check(*changed(**change))


def test_pages_of_whole_numbers_take_no_scales():
    q, pages, sequences = Case().inputs()
    with pytest.raises(ConfigError, match="takes no pages.k_scales"):
        _check(q, pages._replace(k_scales=jnp.ones((22, 2, 4))), sequences, Scores())
