"""Laws that hold for every decoder of the table."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import BFLOAT16, SAME, assert_close
from laws import DECODERS

from jscale.losses import NextToken
from jscale.models import Llama, Model
from jscale.models.layers import REMAT

# Programs of tests run for milliseconds: compiling them well costs more than it saves.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
every = pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)


def tokens(key: int, shape=(2, 12)):
    return jax.random.randint(jax.random.key(key), shape, 0, 64)


def scores(model, params, *args):
    network = model.bind(params)
    return network.unembed(network(*args).hidden)


logits = jax.jit(scores, static_argnums=0, compiler_options=QUICK)


@cache
def ready(config):
    """A model and its first weights, made once for all laws."""
    model = Model(config)
    return model, model.init(jax.random.key(0))


@every
def test_the_future_is_not_seen(config):
    (model, params), x = ready(config), tokens(1)
    changed = x.at[:, 7:].set(tokens(2)[:, 7:])
    before, after = logits(model, params, x), logits(model, params, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


# LongNet's segments are of places in the row: a document is cut otherwise where it lies elsewhere.
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "longnet"])
def test_packed_documents_do_not_see_each_other(name):
    config = DECODERS[name]
    (model, params), x = ready(config), tokens(1)
    segments = jnp.where(jnp.arange(12) < 6, 1, 2) * jnp.ones((2, 1), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(12) % 6, x.shape)
    packed = logits(model, params, x, positions, segments)
    alone = logits(model, params, x.reshape(4, 6)).reshape(packed.shape)
    assert_close(packed, alone, SAME * 10)


@every
def test_a_cache_changes_nothing(config):
    (model, params), x = ready(config), tokens(1)

    @partial(jax.jit, compiler_options=QUICK)
    def read(params, x, positions, cache):
        network = model.bind(params)
        out = network(x, positions, cache=cache)
        return network.unembed(out.hidden), out.cache

    positions = jnp.broadcast_to(jnp.arange(12), x.shape)
    first, cache = read(params, x[:, :5], positions[:, :5], model.bind(params).cache(2, 16))
    steps = [first]
    for i in range(5, 12):
        step, cache = read(params, x[:, i : i + 1], positions[:, i : i + 1], cache)
        steps.append(step)
    assert_close(jnp.concatenate(steps, 1), logits(model, params, x), SAME * 10)


def loss(config, compute, params):
    model, x = Model(config, compute=compute), tokens(3, (2, 13))
    batch = {"inputs": x[:, :-1], "targets": x[:, 1:], "weights": jnp.ones((2, 12))}
    terms = NextToken()(model, params, batch, jax.random.key(0))
    return (terms.losses * terms.weights).mean()


@cache
def loss_and_grads(config):
    _, params = ready(replace(config, remat="none"))
    value_and_grad = jax.value_and_grad(partial(loss, config, "float32"))
    return jax.jit(value_and_grad, compiler_options=QUICK)(params)


@every
def test_rematerialisation_changes_nothing(config):
    wanted = loss_and_grads(replace(config, remat="none"))
    # Of Llama every policy; of others, which have the same stack, the one that keeps the least.
    for policy in REMAT if isinstance(config, Llama) else ("full",):
        assert_close(loss_and_grads(replace(config, remat=policy)), wanted, SAME * 10)


@every
def test_bfloat16_is_near_float32_and_gradients_stay_float32(config):
    config = replace(config, remat="none")
    _, params = ready(config)
    low = partial(loss, config, "bfloat16")
    wanted, _ = loss_and_grads(config)
    assert_close(jax.jit(low, compiler_options=QUICK)(params), wanted, BFLOAT16)
    grads = jax.eval_shape(jax.grad(low), params)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


@every
def test_dtypes_are_never_promoted_by_accident(config):
    model = Model(config, compute="bfloat16", store="bfloat16")
    with jax.numpy_dtype_promotion("strict"):
        out = jax.eval_shape(partial(scores, model), model.shapes, tokens(1))
    assert out.shape == (2, 12, 64) and out.dtype == jnp.bfloat16


@every
def test_every_weight_has_an_axis_for_each_dimension(config):
    model = Model(config)
    pairs = jax.tree.map(lambda s, a: s.ndim == len(a), model.shapes, model.axes)
    assert all(jax.tree.leaves(pairs))
    assert jax.tree.structure(model.shapes) == jax.tree.structure(model.axes)


def test_full_size_shapes_need_no_memory():
    llama = Llama(128_256, 16_384, 126, 128, 8, 53_248, rope=5e5)
    assert 405e9 < Model(llama).size < 406.5e9


def test_one_dial():
    small, large = Llama.of_depth(4, vocab=256), Llama.of_depth(8, vocab=256)
    assert large.dim == 2 * small.dim and Model(large).size > 6 * Model(small).size


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(heads=4, kv_heads=3), "multiple of kv_heads"),
        (dict(layers=0), "layers must be at least 1"),
        (dict(dim=30, heads=4, kv_heads=4), "multiple of heads"),
        (dict(head=7), "must be even"),
        (dict(remat="ful"), "did you mean 'full'"),
    ],
)
def test_sizes_check_themselves(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(DECODERS["llama"], **wrong)
