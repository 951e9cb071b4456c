"""YOCO: one layer's keys and values for half of the layers, and windows that do not grow."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close

from jscale.generate import Sampling, generate
from jscale.models import YOCO, Model

TINY = YOCO(vocab=64, dim=32, layers=4, heads=4, kv_heads=2, hidden=64, window=4, remat="none")


PARAMS = Model(TINY).init(jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, positions=None, segments=None):
    network = model.bind(params)
    return network.unembed(network(tokens, positions, segments).hidden)


def tokens(shape, key=0):
    return jax.random.randint(jax.random.key(key), shape, 0, 64)


def test_one_layer_of_keys_grows_with_length_and_windows_do_not():
    sizes = lambda length: jax.tree.map(
        lambda x: x.shape, jax.eval_shape(lambda: Model(TINY).bind(PARAMS).cache(3, length))
    )
    short, long = sizes(16), sizes(1600)
    assert short.windows == long.windows and long.windows.k == (2, 3, 4, 2, 8)
    assert short.shared.k == (3, 16, 2, 8) and long.shared.k == (3, 1600, 2, 8)


def test_the_first_half_sees_its_windows_only():
    # A change 2 layers × (4 − 1) tokens back does not reach what the first half gives.
    model, x = Model(TINY), tokens((1, 16))

    @jax.jit
    def shared(x):
        network = model.bind(PARAMS)
        cache = network.cache(1, 16)
        return network(x, cache=cache).cache.shared.v

    before, after = shared(x), shared(x.at[:, 2].add(1))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    np.testing.assert_array_equal(before[:, 9:], after[:, 9:])
    assert (before[:, 8] != after[:, 8]).any()
    # The second half sees all.
    changed = logits(model, PARAMS, x.at[:, 2].add(1))
    assert (logits(model, PARAMS, x)[:, 15] != changed[:, 15]).any()


@pytest.mark.parametrize("first", [1, 3, 4, 9])
def test_a_window_is_kept_whatever_the_pieces(first):
    model, x = Model(TINY), tokens((2, 14))

    @jax.jit
    def read(piece, positions, cache):
        network = model.bind(PARAMS)
        out = network(piece, positions, cache=cache)
        return network.unembed(out.hidden), out.cache

    cache, pieces = model.bind(PARAMS).cache(2, 14), []
    for start, end in [(0, first), (first, first + 3), (first + 3, 14)]:
        positions = jnp.broadcast_to(jnp.arange(start, end), (2, end - start))
        piece, cache = read(x[:, start:end], positions, cache)
        pieces.append(piece)
    assert_close(jnp.concatenate(pieces, 1), logits(model, PARAMS, x), SAME * 20)


def test_prompts_of_unequal_length_go_on_as_each_alone():
    model = Model(TINY)
    prompts = [tokens((n,), n).tolist() for n in (3, 11, 6)]
    greedy = partial(generate, model, PARAMS, length=6, sampling=Sampling(temperature=0.0))
    together = greedy(prompts)
    assert [greedy([prompt])[0] for prompt in prompts] == list(together)


@pytest.mark.parametrize(
    "wrong, message", [(dict(layers=3), "must be even"), (dict(window=0), "window must be")]
)
def test_sizes_check_themselves(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)
