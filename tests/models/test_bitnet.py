"""Ternary weights: how they round, how they train, and that packing changes nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from jscale.models import BitNet, Model
from jscale.models.bitnet import Latent, eight_bits, pack, straight, ternary, unpack

TINY = BitNet(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none")


def test_weights_round_to_three_values_by_their_mean():
    w = jnp.asarray([[3.0, -0.4, 0.0, -1.6], [0.6, 1.0, -3.0, 0.4]])  # |w| is 1.25 on average
    rounded, scale = ternary(w)
    assert scale == 1.25
    np.testing.assert_array_equal(rounded, [[1, 0, 0, -1], [0, 1, -1, 0]])
    assert (ternary(jnp.zeros((4, 4)))[0] == 0).all()


def test_activations_round_to_eight_bits_token_by_token():
    x = jnp.asarray([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0]])
    rounded, scale = eight_bits(x)
    np.testing.assert_array_equal(rounded, [[127, -50, 0], [0, 0, 0]])
    np.testing.assert_allclose(scale[0], 0.01, rtol=1e-6)


def test_gradients_pass_straight_through():
    grad = jax.grad(lambda x: (straight(x, jnp.round(x)) * jnp.arange(3.0)).sum())
    np.testing.assert_array_equal(grad(jnp.asarray([0.2, 0.7, -1.4])), [0, 1, 2])


@pytest.mark.parametrize("shape", [(4, 1), (8, 5), (64, 3)])
def test_four_weights_are_a_byte(shape):
    w = jax.random.normal(jax.random.key(0), shape)
    codes, scale = pack(w)
    assert codes.dtype == jnp.uint8 and codes.shape == (shape[0] // 4, shape[1])
    rounded, wanted = ternary(w)
    np.testing.assert_array_equal(unpack(codes), rounded)
    np.testing.assert_allclose(scale, wanted, rtol=1e-6)


def test_a_matrix_is_the_formula_in_values_and_gradients():
    from flax import nnx

    layer = Latent(dict(embed=8, mlp=12), nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    w = layer.kernel[...]
    s = np.abs(w).mean()
    t = np.abs(x).max(-1, keepdims=True) / 127
    w_rounded, x_rounded = np.clip(np.round(w / s), -1, 1) * s, np.round(x / t) * t
    assert_close(layer(x), x_rounded @ w_rounded, 1e-5)
    by_x = jax.grad(lambda x: (layer(x) ** 2).sum())(x)
    # Straight through: as if the rounded factors were those that were given.
    assert_close(by_x, 2 * (x_rounded @ w_rounded) @ w_rounded.T, 1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_packing_changes_nothing_but_memory(tied):
    config = replace(TINY, tied=tied)
    model = Model(config)
    params = model.init(jax.random.key(0))
    packed_config, packed = config.packed(params)
    small = Model(packed_config)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), small.shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), packed
    )
    x = jax.random.randint(jax.random.key(1), (2, 12), 0, 64)

    @partial(jax.jit, static_argnums=0)
    def logits(model, params):
        network = model.bind(params)
        return network.unembed(network(x).hidden)

    assert_close(logits(small, packed), logits(model, params), 1e-4)
    size = lambda params: sum(a.nbytes for a in jax.tree.leaves(params["blocks"]))
    assert size(params) > 12 * size(packed)  # 16, but for norms and scales


def test_it_learns():
    import optax

    model = Model(TINY)
    params = model.init(jax.random.key(0))
    x = jnp.broadcast_to(jnp.arange(12) * 5 % 64, (2, 12))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            network = model.bind(params)
            logp = jax.nn.log_softmax(network.unembed(network(x[:, :-1]).hidden))
            return -jnp.take_along_axis(logp, x[:, 1:, None], -1).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 < 3 < losses[0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(hidden=66), "hidden=66 must be a multiple of 4"),
        (dict(weights="pack"), "did you mean 'packed'"),
        (dict(heads=5, kv_heads=5), "must be a multiple of heads"),
    ],
)
def test_sizes_check_themselves(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)
