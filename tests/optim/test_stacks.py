"""Stacked and split weights are optimized as the matrices that they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from optim.weights import AXES, SHAPES, STEPS, train, tree

from jscale.optim import Adafactor, AdamW, Averaged, Muon, ScheduleFree

GRADIENT = lambda params: jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, params)


def test_muon_knows_matrices_in_stacks():
    numbers = optax.contrib.MuonDimensionNumbers
    assert Muon(1e-3).matrices(AXES) == {
        "embed": None,  # vocab: by AdamW
        "blocks": {
            "attend": {"q": numbers((1,), (2, 3)), "o": numbers((1, 2), (3,)), "bias": None},
            "norm": None,
            "route": numbers((1,), (2,)),
            "up": numbers((2,), (3,)),
            "up_bias": None,
        },
        "norm": None,
    }


@pytest.mark.parametrize(
    ("axes", "shape", "flat"),
    [
        (P("layers", "embed", "heads", "head"), (3, 16, 4, 2), (16, 8)),
        (P("layers", "heads", "head", "embed"), (3, 4, 2, 16), (8, 16)),
        (P("layers", "experts", "embed", "mlp"), (2, 2, 8, 12), (8, 12)),
    ],
    ids=str,
)
def test_muon_on_a_stack_is_muon_on_each_matrix(axes, shape, flat):
    whole = {"w": jax.random.normal(jax.random.key(0), shape)}
    apart = {str(i): part for i, part in enumerate(whole["w"].reshape(-1, *flat))}
    muon = Muon(1e-2, clip=None)
    tx = muon.build({"w": axes}, whole, STEPS)
    stacked, _ = train(tx, whole, GRADIENT, 3)
    tx = muon.build({name: P("embed", "mlp") for name in apart}, apart, STEPS)
    single, _ = train(tx, apart, GRADIENT, 3)
    joined = jnp.stack(list(single.values())).reshape(shape)
    np.testing.assert_allclose(stacked["w"], joined, rtol=1e-5, atol=1e-6)


def test_muon_makes_updates_orthogonal_with_the_rms_of_adam():
    # Newton-Schulz brings singular values near 1; times 0.2 sqrt(max side), the rms is near 0.2.
    params = {"w": jax.random.normal(jax.random.key(0), (64, 16, 4))}
    axes = {"w": P("embed", "heads", "head")}
    tx = Muon(1.0, weight_decay=0.0, clip=None).build(axes, params, STEPS)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    values = jnp.linalg.svd(updates["w"].reshape(64, 64), compute_uv=False)
    assert 0.12 < jnp.sqrt(jnp.mean(updates["w"] ** 2)) < 0.24
    assert values.max() / 1.6 < 1.3  # 0.2 * sqrt(64) = 1.6


@pytest.mark.parametrize("factor_from", [4, 1000])
def test_adafactor_on_a_stack_is_adafactor_on_each_layer(factor_from):
    whole = {"w": jax.random.normal(jax.random.key(0), (3, 8, 12)), "s": jnp.ones((3, 8))}
    axes = {"w": P("layers", "embed", "mlp"), "s": P("layers", "scale")}
    adafactor = Adafactor(1e-2, factor_from=factor_from, weight_decay=0.1, clip=None)
    stacked, _ = train(adafactor.build(axes, whole, STEPS), whole, GRADIENT, 3)
    for layer in range(3):
        part = jax.tree.map(lambda p, layer=layer: p[layer], whole)
        axes = {"w": P("embed", "mlp"), "s": P("scale")}
        single, _ = train(adafactor.build(axes, part, STEPS), part, GRADIENT, 3)
        for name in whole:
            np.testing.assert_allclose(stacked[name][layer], single[name], rtol=1e-6, atol=1e-7)


def test_average_is_the_moving_average_of_the_parameters():
    adamw, params = AdamW(1e-2), tree(0)
    averaged = Averaged(of=adamw, decay=0.25)
    tx, inner = (each.build(AXES, SHAPES, STEPS) for each in (averaged, adamw))
    wanted, state, held = params, tx.init(params), inner.init(params)
    update, plain = jax.jit(tx.update), jax.jit(inner.update)
    for keep in (1 / 10, 2 / 11, 0.25, 0.25):
        updates, state = update(GRADIENT(params), state, params)
        same, held = plain(GRADIENT(params), held, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, same)
        params = optax.apply_updates(params, updates)
        wanted = jax.tree.map(lambda a, p, k=keep: k * a + (1 - k) * p, wanted, params)
    found = averaged.evaluation_params(params, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_schedule_free_evaluates_the_average_and_not_the_point_of_training():
    free, start = ScheduleFree(5e-2, weight_decay=0.0), tree(0)
    tx = free.build(AXES, SHAPES, STEPS)
    params, state = train(tx, start, GRADIENT, 5)
    x = free.evaluation_params(params, state)
    back = jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, x, state.z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), back, params)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, x, params)) > 1e-3


def test_state_starts_in_its_own_buffers_so_that_both_can_be_donated():
    params = tree(0)
    for optimizer in (Averaged(of=AdamW(1e-3)), ScheduleFree(1e-3)):
        tx = optimizer.build(AXES, SHAPES, STEPS)
        step = jax.jit(lambda p, s, tx=tx: tx.update(GRADIENT(p), s, p), donate_argnums=(0, 1))
        own = jax.tree.map(jnp.copy, params)
        updates, _ = step(own, tx.init(own))
        assert bool(jnp.isfinite(optax.tree.norm(updates)))
