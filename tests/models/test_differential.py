"""Differential attention equals its formula, written out for each head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close

from jscale.models import Model
from jscale.models.attention import Heads
from jscale.models.decoder import context_of
from jscale.models.differential import Differential, DifferentialAttention, first_difference
from jscale.models.rope import rope

TINY = Differential(vocab=64, dim=32, layers=2, heads=2, kv_heads=1, hidden=64, remat="none")


def by_formula(layer, x, first, N, K):
    """Head by head, from the paper's definition."""
    B, T, _ = x.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    q = rope(jnp.einsum("btd,dnh->btnh", x, layer.q[...]), positions, 1e4)
    k = rope(jnp.einsum("btd,dnh->btnh", x, layer.k[...]), positions, 1e4)
    v = jnp.einsum("btd,dnh->btnh", x, layer.v[...])
    past = jnp.tril(jnp.ones((T, T), bool))
    by_query, by_key = layer.by_query[...], layer.by_key[...]
    ratio = jnp.exp(by_query[0] @ by_key[0]) - jnp.exp(by_query[1] @ by_key[1]) + first
    group, heads = N // K, []
    for n in range(N):
        pair, at = n // group, n % group
        maps = []
        for which in range(2):
            query, key = q[:, :, (2 * pair + which) * group + at], k[:, :, 2 * pair + which]
            scores = jnp.einsum("bth,bsh->bts", query, key) / np.sqrt(query.shape[-1])
            maps.append(jax.nn.softmax(jnp.where(past, scores, -jnp.inf), -1))
        out = jnp.einsum("bts,bsh->bth", maps[0] - ratio * maps[1], v[:, :, pair])
        out /= jnp.sqrt(jnp.square(out).mean(-1, keepdims=True) + 1e-5)
        heads.append(out * layer.norm.scale[...] * (1 - first))
    return jnp.einsum("btnh,nhd->btd", jnp.stack(heads, 2), layer.o[...])


@pytest.mark.parametrize("N, K", [(2, 2), (4, 2), (3, 1)])
def test_values_and_gradients_are_those_of_the_formula(N, K):
    from flax import nnx

    layer = DifferentialAttention(Heads(16, N, K, 6), 1e4, 1e-5, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 9, 16))
    first, graph_state = jnp.asarray(0.35), nnx.split(layer)

    def ours(state, x):
        context = context_of(jnp.zeros((2, 9), jnp.int32), None, None)
        return (nnx.merge(graph_state[0], state)(x, context, (None, first))[0] ** 2).sum()

    def wanted(state, x):
        return (by_formula(nnx.merge(graph_state[0], state), x, first, N, K) ** 2).sum()

    grads = lambda f: jax.jit(jax.value_and_grad(f, (0, 1)))(graph_state[1], x)
    assert_close(jax.tree.leaves(grads(ours)), jax.tree.leaves(grads(wanted)), SAME * 20)


def test_deeper_layers_subtract_more():
    np.testing.assert_allclose(
        first_difference(3), [0.2, 0.8 - 0.6 * np.exp(-0.3), 0.8 - 0.6 * np.exp(-0.6)], rtol=1e-6
    )


def test_it_is_as_large_as_a_llama_of_twice_the_heads():
    from jscale.models import Llama

    llama = Llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64)
    small = 2 * (4 * 8 + 16)  # what makes λ, and the norm of heads
    assert Model(TINY).size == Model(llama).size + small


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(heads=3, kv_heads=2), "multiple of kv_heads"),
        (dict(dim=30), "multiple of heads=4"),
        (dict(head=5), "must be even"),
        (dict(hidden=0), "hidden must be at least 1"),
    ],
)
def test_sizes_check_themselves(wrong, message):
    from dataclasses import replace

    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)
