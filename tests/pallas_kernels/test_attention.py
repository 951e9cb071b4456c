"""Attention against a loop over queries in float64, and its ugly cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.pallas_kernels.attention import Mask, attention


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


def call(heads=(2, 2), **options):
    q, k, v = draw(0, 1, 2, 2, heads, 4)
    return attention(q, k, v, **options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: call(heads=(3, 2)), "3 query heads are not a multiple of 2"),
        (lambda: call(implementation="refrence"), "did you mean 'reference'"),
        (lambda: Mask(window=0), "at least 1 token"),
        (lambda: Mask(causal=False, window=3), "must be causal"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
