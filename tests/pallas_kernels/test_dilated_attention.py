"""Dilated attention against masks written out, in values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dilated import FLOAT32, draw, everything, same
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, Scores, attention
from jscale.pallas_kernels.dilated_attention import dilated_attention
from jscale.pallas_kernels.dilated_attention.choice import OPERATION

BFLOAT16 = 1e-2  # relative Frobenius error
MASKS = [CAUSAL, FULL, Mask(window=5), Mask(False, window=3), Mask(chunk=7), Mask(prefix=9)]
PATTERNS = [((8, 1), (16, 2), (64, 4)), ((5, 3), (13, 7)), ((3, 5), (9, 1)), ((6, 2),)]


def both(given, mask, limit=FLOAT32, **options):
    run = lambda name: (
        lambda q, k, v: dilated_attention(q, k, v, mask, implementation=name, **options)
    )
    exact = [x.astype(jnp.float32) for x in given]
    same(everything(run("xla"), *given), everything(run("reference"), *exact), limit)


def by_hand(q, k, v, patterns):
    """Causal, one query of one head and one pattern at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, t, n in np.ndindex(*q.shape[:3]):
        group = n * k.shape[2] // q.shape[2]
        total = weight = 0.0
        for w, r in patterns:
            start = t // w * w
            taken = [s for s in range(start, start + w) if (s - start) % r == n % r]
            seen = [s for s in taken if s <= t] if t in taken else []
            if seen:
                powers = np.exp(k[b, seen, group] @ q[b, t, n] / np.sqrt(q.shape[-1]))
                # softmax(lse)_p times softmax(scores): what a sum over all pairs comes to
                total, weight = total + powers @ v[b, seen, group], weight + powers.sum()
        if weight:
            out[b, t, n] = total / weight
    return out


@pytest.mark.parametrize("patterns", PATTERNS)
@pytest.mark.parametrize("name", ["reference", "xla"])
def test_against_a_loop(patterns, name):
    q, k, v = draw(0, 1, 21, (4, 2))
    out = dilated_attention(q, k, v, patterns=patterns, implementation=name)
    same([out], [by_hand(q, k, v, patterns)], 1e-6)


@settings(deadline=None, max_examples=4)
@given(
    st.integers(0, 99),
    st.integers(1, 40),
    st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    st.sampled_from(MASKS),
    st.sampled_from(PATTERNS),
    st.booleans(),
)
def test_gathered_equals_the_reference(seed, T, heads, mask, patterns, packed):
    marks = np.sort(np.random.default_rng(seed).integers(-1, 3, (2, T)), -1)
    segments = jnp.asarray(marks) if packed else None
    both(draw(seed, 2, T, heads), mask, patterns=patterns, segments=segments)


def test_long_segments_go_by_tiles():
    both(draw(0, 1, 300, (2, 1)), CAUSAL, patterns=((256, 1), (300, 2)))


def test_bfloat16_is_near_the_float32_reference():
    given = draw(0, 2, 64, (4, 2), 16, 16, jnp.bfloat16)
    both(given, CAUSAL, BFLOAT16, patterns=PATTERNS[0])


def test_scores_are_capped_sloped_and_sunk():
    slopes, sinks = jnp.asarray([0.5, 0.1]), jnp.asarray([0.3, -1.0])

    def run(name):
        def with_sinks(q, k, v, sinks):
            scores = Scores(0.7, cap=2.0, slopes=slopes, sinks=sinks)
            patterns = ((8, 1), (16, 2))
            return dilated_attention(q, k, v, patterns=patterns, scores=scores, implementation=name)

        return with_sinks

    given = *draw(1, 1, 21, (2, 2)), sinks
    same(everything(run("xla"), *given), everything(run("reference"), *given))


def test_one_pattern_of_all_is_attention():
    given = draw(2, 2, 21, (4, 2))
    run = lambda q, k, v: dilated_attention(q, k, v, patterns=((21, 1),))
    same(everything(run, *given), everything(attention, *given))


def test_a_token_of_no_pattern_gives_zero_and_no_gradient():
    given = draw(3, 1, 8, (2, 2))
    run = lambda q, k, v: dilated_attention(q, k, v, patterns=((8, 2), (4, 4)))
    out, dq, dk, dv = everything(run, *given)
    for x in (out, dq, dk, dv):
        assert (x[0, 1::2, 0] == 0).all() and (x[0, 0::2, 1] == 0).all()
        assert (x[0, 0::2, 0] != 0).any() or x is dq


@pytest.mark.parametrize("patterns", PATTERNS)
def test_the_past_does_not_feel_the_future(patterns):
    q, k, v = draw(4, 1, 30, (4, 2))
    run = jax.jit(lambda q, k, v: dilated_attention(q, k, v, patterns=patterns))
    at = 17
    shaken = [x.at[:, at:].set(1e3 * x[:, at:] + 7) for x in (q, k, v)]
    before, after = run(q, k, v), run(*shaken)
    assert (before[:, :at] == after[:, :at]).all() and (before[:, at:] != after[:, at:]).any()


@pytest.mark.parametrize("inside", ["vmap", "remat", "scan", "shard_map"])
def test_under_transformations(inside):
    given = draw(5, 2, 20, (2, 1))
    one = lambda q, k, v: dilated_attention(q, k, v, patterns=PATTERNS[0])
    if inside == "vmap":
        run = lambda *x: jax.vmap(one)(*(jnp.stack([a, 2 * a]) for a in x))[0]
    elif inside == "remat":
        run = jax.checkpoint(one)
    elif inside == "scan":
        run = lambda *x: jax.lax.scan(lambda c, a: (c, one(*a)), 0, [a[None] for a in x])[1][0]
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        rows = jax.sharding.PartitionSpec("data")
        run = jax.shard_map(one, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    plain = lambda q, k, v: dilated_attention(
        q, k, v, patterns=PATTERNS[0], implementation="reference"
    )
    same(everything(run, *given), everything(plain, *given))


def test_nothing_in_gives_nothing_out():
    q, k, v = draw(0, 2, 0, (2, 1))
    assert dilated_attention(q, k, v, patterns=((4, 2),)).shape == (2, 0, 2, 6)


def test_slopes_where_places_count_are_the_references():
    scores, (q, k, v) = Scores(slopes=jnp.ones(2)), draw(0, 1, 9, (2, 2))
    run = lambda **more: dilated_attention(q, k, v, FULL, patterns=((8, 2),), scores=scores, **more)
    with pytest.raises(ConfigError, match="cannot have slopes with the pattern"):
        run(implementation="xla")
    same([run()], [run(implementation="reference")], 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(patterns=()), "one .segment, dilation. or more"),
        (dict(patterns=((4, 0),)), r"pattern \(4, 0\) must be"),
        (dict(scores=Scores(bias=jnp.zeros((1, 1, 6, 6)))), "scores.bias is of all pairs"),
        (dict(scores=Scores(slopes=jnp.ones(3))), "scores.slopes .* must be of 2 heads"),
        (dict(implementation="xl"), "did you mean 'xla'"),
    ],
)
def test_wrong_calls_are_named(options, message):
    q, k, v = draw(0, 1, 6, (2, 2))
    with pytest.raises(ConfigError, match=message):
        dilated_attention(q, k, v, **(dict(patterns=((4, 2),)) | options))


def test_heads_must_be_a_multiple():
    q, k, v = draw(0, 1, 6, (3, 2))
    with pytest.raises(ConfigError, match="3 query heads are not a multiple of 2"):
        dilated_attention(q, k, v, patterns=((4, 2),))


def test_every_implementation_is_tested_here():
    assert set(OPERATION.implementations) == {"reference", "xla"}
