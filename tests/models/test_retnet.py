"""RetNet: padding, a memory of one size, text from it, its sizes and its first weights."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close
from laws import DECODERS

from jscale import train
from jscale.config.data import from_data, to_data
from jscale.config.override import override
from jscale.errors import ConfigError
from jscale.generate import Sampling, generate
from jscale.launch.recipes import tiny
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh
from jscale.models import Model, RetNet
from jscale.models.feed import GLU, Drop
from jscale.models.residual import DeepNorm
from jscale.models.retnet import SIZES, Chunkwise, Parallel, Recurrent
from jscale.models.retnet.carry import retain
from jscale.models.retnet.forms import Given
from jscale.models.retnet.retention import decays

TINY = DECODERS["retnet"]
MODEL = Model(TINY)
PARAMS = MODEL.init(jax.random.key(0))
NETWORK = MODEL.bind(PARAMS)
X = jax.random.randint(jax.random.key(1), (2, 7), 0, 64)


@pytest.mark.parametrize(
    "left, right, form",
    [(5, 0, Chunkwise()), (0, 5, Chunkwise()), (3, 2, Parallel()), (3, 2, Recurrent())],
)
def test_padding_on_either_side_changes_nothing(left, right, form):
    network = Model(replace(TINY, form=form)).bind(PARAMS)
    padded = jnp.pad(X, ((0, 0), (left, right)), constant_values=9)
    segments = jnp.pad(jnp.ones_like(X), ((0, 0), (left, right)))
    hidden = network(padded, segments=segments).hidden[:, left : left + 7]
    assert_close(hidden, NETWORK(X).hidden, SAME * 10)


@pytest.mark.parametrize("left, right", [(5, 0), (3, 2)])
def test_padding_leaves_no_trace_in_the_memory(left, right):
    """Neither in an empty one nor in one that has seen a prompt."""
    padded = jnp.pad(X[:, 3:], ((0, 0), (left, right)), constant_values=9)
    segments = jnp.pad(jnp.ones_like(X[:, 3:]), ((0, 0), (left, right)))
    positions = 3 + jnp.pad(jnp.arange(4), (left, right))
    empty = NETWORK.cache(2, 16)
    first = NETWORK(X[:, :3], cache=empty).cache
    out = NETWORK(padded, jnp.broadcast_to(positions, padded.shape), segments, first)
    wanted = NETWORK(X, cache=empty)
    assert_close(out.cache, wanted.cache, SAME * 10)
    assert_close(out.hidden[:, left : left + 4], wanted.hidden[:, 3:], SAME * 10)
    nothing = NETWORK(padded, None, jnp.zeros_like(padded), first)
    assert_close(nothing.cache, first, SAME)


def test_the_memory_is_of_one_size_whatever_the_length():
    short, long = NETWORK.cache(3, 16), NETWORK.cache(3, 1_000_000)
    assert jax.tree.map(jnp.shape, short) == jax.tree.map(jnp.shape, long)
    assert short.state.shape == (2, 3, 4, 8, 16) and short.state.dtype == jnp.float32


def test_text_from_prompts_of_several_lengths_is_that_from_each_alone():
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 7, 3]]
    ask = lambda prompts: generate(MODEL, PARAMS, prompts, length=6, sampling=Sampling(0.0))
    together = ask(prompts)
    assert together == [ask([prompt])[0] for prompt in prompts]
    row = list(prompts[2])
    for token in together[2]:
        scores = NETWORK.unembed(NETWORK(jnp.asarray([row])).hidden)[0, -1]
        assert int(scores.argmax()) == token
        row.append(token)


def test_devices_that_share_a_row_hand_on_its_state():
    """Packed, a state before it, and heads split too: what comes after, and the gradients."""
    keys = jax.random.split(jax.random.key(2), 4)
    shapes = (2, 16, 4, 4), (2, 16, 4, 4), (2, 16, 4, 6), (2, 4, 4, 6)
    q, k, v, state = (jax.random.normal(a, s) for a, s in zip(keys, shapes, strict=True))
    one = jnp.ones((2, 16), jnp.int32).at[1, 9:].set(2).at[1, 14:].set(3)

    def total(layout, q, k, v, state):
        given = Given(q, k, v, decays(4), state)
        if layout is None:
            out, last = retain(Parallel(), replace(given, runs=None), one)
        else:
            with layout.active():
                out, last = retain(Chunkwise(), given, one)
        return (jnp.sin(out).sum() + jnp.cos(last).sum(), (out, last))

    found = [
        jax.jit(jax.value_and_grad(lambda *x, a=a: total(a, *x), (0, 1, 2, 3), has_aux=True))(
            q, k, v, state
        )
        for a in (None, Layout(make_mesh(context=4, tensor=2)))
    ]
    assert_close(found[1], found[0], LAYOUT)


def task(axes):
    return train.Task(MODEL, optax.adam(1e-2), NextToken(), Layout(make_mesh(**axes)))


def test_it_learns():
    tokens = jnp.tile(jnp.arange(9), (8, 4))
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((8, 35))}
    mine = task(dict(data=2, fsdp=2, tensor=2))
    state, step = train.init(mine, jax.random.key(0)), train.make_step(mine)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 3 and losses[-1] < 0.5


def test_what_is_dropped_is_dropped_in_training_only():
    c = replace(TINY, drop=Drop(units=0.3, activation=0.2, path=0.5))
    model = Model(c)
    hidden = lambda key: model.bind(PARAMS, key)(X).hidden
    still = hidden(None)
    assert_close(still, NETWORK(X).hidden, SAME)
    first, again, other = (
        hidden(jax.random.key(1)),
        hidden(jax.random.key(1)),
        hidden(jax.random.key(2)),
    )
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - still) > 1e-3).any() and (np.abs(first - other) > 1e-3).any()


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_whole(name):
    c = RetNet.of_size(name, vocab=50_000)
    model = Model(c)
    assert isinstance(c.feed, GLU)
    D, V, F, L = c.dim, c.value, c.feed.hidden, c.layers
    layer = 2 * D * D + 3 * D * V + 3 * D * F + 2 * D
    assert model.size == L * layer + 2 * 50_000 * D + D
    names = {"3b": (2.6e9, 3.4e9), "7b": (6.2e9, 7.5e9), "13b": (11e9, 14e9), "65b": (5e10, 7e10)}
    low, high = names.get(name, (0, 2e9))
    assert low < model.size < high


def test_the_defaults_run():
    c = RetNet(vocab=11)
    assert (c.dim, c.value, c.heads, c.layers) == SIZES["base"]
    model = Model(c)
    run = lambda params: model(params, X % 11).hidden
    assert jax.eval_shape(run, model.shapes).shape == (2, 7, 512)


@pytest.mark.parametrize("residual, gain", [(None, 1.0), (DeepNorm(), 16**-0.25)])
def test_first_weights_are_the_original_s(residual, gain):
    """Xavier with gain 2^−2.5 within retention, PyTorch's own in the feed-forward, DeepNorm's."""
    c = replace(TINY, **({} if residual is None else {"residual": residual}))
    params = Model(c).init(jax.random.key(3))
    block = jax.tree.map(lambda w: float(np.abs(w).max()), params["blocks"]["block"])
    xavier = lambda a, b: math.sqrt(6 / (a + b))
    wanted = {
        ("retain", "q"): 2**-2.5 * xavier(32, 32),
        ("retain", "k"): 2**-2.5 * xavier(32, 32),
        ("retain", "v"): 2**-2.5 * xavier(32, 64) * gain,
        ("retain", "g"): 2**-2.5 * xavier(32, 64),
        ("retain", "o"): xavier(64, 32) * gain,
        ("feed", "gate"): 32**-0.5 * gain,
        ("feed", "up"): 32**-0.5,
        ("feed", "down"): 48**-0.5 * gain,
    }
    for (part, name), bound in wanted.items():
        found = block[part][name]
        found = found["kernel"] if isinstance(found, dict) else found
        assert 0.98 * bound < found <= bound * (1 + 1e-6), (part, name)
    np.testing.assert_allclose(np.std(params["embed"]["table"]), 32**-0.5, rtol=0.05)


def test_first_weights_of_the_paper_are_xavier_s():
    params = Model(replace(TINY, init="paper", residual=DeepNorm())).init(jax.random.key(3))
    retain = params["blocks"]["block"]["retain"]
    np.testing.assert_allclose(np.std(retain["q"]), math.sqrt(2 / 64), rtol=0.05)
    np.testing.assert_allclose(np.std(retain["v"]), math.sqrt(2 / 96) * 16**-0.25, rtol=0.05)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(value=63), "value=63 must be a multiple of heads=4"),
        (dict(dim=30), "dim=30 must be a multiple of heads=4"),
        (dict(heads=32), "even size for rotation, not 1"),
        (dict(layers=0), "layers must be at least 1"),
        (dict(init="torchscal"), "did you mean 'torchscale'"),
        (dict(remat="ful"), "did you mean 'full'"),
        (dict(eps=0.0), "eps must be positive"),
        (dict(drop=Drop(attention=0.1)), "no probabilities to drop"),
    ],
)
def test_sizes_check_themselves(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **wrong)


def test_names_are_checked():
    with pytest.raises(ConfigError, match="did you mean '13b'"):
        RetNet.of_size("13", vocab=8)
    with pytest.raises(ConfigError, match="did you mean 'decay'"):
        Parallel("decai")
    with pytest.raises(ConfigError, match="at least 1 place"):
        Chunkwise(places=0)


def test_a_cache_changes_nothing_without_a_norm_before_the_head():
    model = Model(replace(TINY, residual=DeepNorm(), feed=GLU(48), tied=True))
    bound = model.bind(model.init(jax.random.key(4)))
    whole = bound(X).hidden
    out = bound(X[:, :4], cache=bound.cache(2, 8))
    parts = [out.hidden]
    for i in range(4, 7):
        out = bound(X[:, i : i + 1], jnp.full((2, 1), i), cache=out.cache)
        parts.append(out.hidden)
    assert_close(jnp.concatenate(parts, 1), whole, SAME * 10)


def test_a_recipe_can_hold_one():
    recipe = replace(tiny.recipe(), model=replace(TINY, vocab=259))
    assert from_data(to_data(recipe)) == recipe
    changes = {"model.form": 'Parallel("torchscale")', "model.residual": "DeepNorm()"}
    changed = override(recipe, changes | {"model.drop.path": "0.1"}).model
    wanted = replace(
        TINY, vocab=259, form=Parallel("torchscale"), residual=DeepNorm(), drop=Drop(path=0.1)
    )
    assert changed == wanted
    assert override(recipe, {"model": 'RetNet.of_size("xl", vocab=259)'}).model.layers == 24
