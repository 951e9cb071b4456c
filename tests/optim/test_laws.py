"""Laws that hold for every optimizer in the table (tests/optim/weights.py)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from optim.weights import ALL, AXES, MATRICES, SHAPES, STEPS, descent, train, tree

from jscale.errors import ConfigError
from jscale.optim import (
    SGD,
    Adafactor,
    AdamW,
    Averaged,
    Constant,
    Lion,
    Muon,
    Optimizer,
    ScheduleFree,
)
from jscale.optim.matrices import decays

every = pytest.mark.parametrize("optimizer", ALL, ids=repr)
MATRIX = {"w": P("embed", "mlp"), "norm": P("scale")}
MATRIX_SHAPES = {
    "w": jax.ShapeDtypeStruct((8, 12), jnp.float32),
    "norm": jax.ShapeDtypeStruct((8,), jnp.float32),
}


def distance(a, b) -> float:
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, a, b), squared=True))


def innermost(optimizer: Any) -> Any:
    return optimizer.of if isinstance(optimizer, Averaged) else optimizer


@every
def test_decreases_a_quadratic(optimizer):
    assert isinstance(optimizer, Optimizer)
    start, goal = tree(0, scale=0.3), tree(1, scale=0.3)
    params, state = descent(optimizer)(start, goal, 1.0, STEPS)
    before = distance(start, goal)
    assert distance(params, goal) < 0.5 * before
    assert distance(optimizer.evaluation_params(params, state), goal) < 0.5 * before


@every
def test_decreases_least_squares(optimizer):
    inputs = jax.random.normal(jax.random.key(2), (64, 8))
    targets = inputs @ tree(3, MATRIX_SHAPES)["w"]
    loss = lambda p: jnp.mean(((inputs * p["norm"]) @ p["w"] - targets) ** 2)
    start = {"w": 0.1 * tree(4, MATRIX_SHAPES)["w"], "norm": jnp.ones(8)}
    tx = optimizer.build(MATRIX, MATRIX_SHAPES, STEPS)
    params, _ = train(tx, start, jax.grad(loss), STEPS)
    assert loss(params) < 0.7 * loss(start)


@every
def test_same_gradients_give_the_same_state_bit_for_bit(optimizer):
    once, again = (descent(optimizer)(tree(5), tree(6), 1.0, 3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)


@every
def test_the_update_keeps_structure_shapes_and_dtypes(optimizer):
    tx = optimizer.build(AXES, SHAPES, STEPS)
    state = jax.eval_shape(tx.init, SHAPES)
    updates, after = jax.eval_shape(tx.update, SHAPES, state, SHAPES)
    form = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype), t)
    assert form(after) == form(state)
    assert form(updates) == form(SHAPES)


@every
def test_without_gradients_only_matrices_move(optimizer):
    start = tree(6)
    params, _ = descent(optimizer)(start, tree(7), 0.0, 5)
    inner = innermost(optimizer)
    kept = np.prod([1 - inner.rate(step, STEPS) * inner.weight_decay for step in range(5)])
    for matrix, old, new in zip(*map(jax.tree.leaves, (MATRICES, start, params)), strict=True):
        if not matrix:
            # x -> y -> x of schedule-free rounds; every other update is exactly zero.
            rounding = 1e-6 if isinstance(inner, ScheduleFree) else 0
            np.testing.assert_allclose(new, old, rtol=rounding)
        elif isinstance(inner, ScheduleFree):
            assert jnp.linalg.norm(new) < jnp.linalg.norm(old)
        else:
            np.testing.assert_allclose(new, kept * old, rtol=1e-5)


@every
def test_rate_is_the_schedule_of_the_optimizer(optimizer):
    inner = innermost(optimizer)
    assert optimizer.rate(7, STEPS) == inner.schedule.rate(inner.peak, 7, STEPS) > 0


@every
def test_is_a_frozen_hashable_value(optimizer):
    assert dataclasses.replace(optimizer) == optimizer
    assert hash(dataclasses.replace(optimizer)) == hash(optimizer)


def test_decay_reads_axes_and_not_names():
    assert decays(AXES) == MATRICES


SCHEDULE = Constant(warmup=3)
RATE = SCHEDULE.build(1e-2, STEPS)
MASK = {"w": True, "norm": False}
CLIP = optax.clip_by_global_norm(1.0)


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (
            AdamW(1e-2, SCHEDULE, 0.8, 0.9, 1e-6, 0.2),
            optax.adamw(RATE, 0.8, 0.9, 1e-6, weight_decay=0.2, mask=MASK),
        ),
        (
            AdamW(1e-2, SCHEDULE, moments="bfloat16"),
            optax.adamw(RATE, 0.9, 0.95, weight_decay=0.1, mask=MASK, mu_dtype=jnp.bfloat16),
        ),
        (
            Lion(1e-2, SCHEDULE, 0.8, 0.9, 0.2),
            optax.lion(RATE, 0.8, 0.9, weight_decay=0.2, mask=MASK),
        ),
        (SGD(1e-2, SCHEDULE, 0.7, nesterov=True), optax.sgd(RATE, 0.7, nesterov=True)),
        (SGD(1e-2, SCHEDULE, None), optax.sgd(RATE)),
        (
            Muon(1e-2, SCHEDULE, 0.9, 4, 0.3, weight_decay=0.2),
            optax.contrib.muon(
                RATE,
                beta=0.9,
                ns_steps=4,
                consistent_rms=0.3,
                adam_b2=0.95,
                weight_decay=0.2,
                weight_decay_mask={"w": True, "norm": optax.MaskedNode()},
            ),
        ),
        (
            Adafactor(1e-2, SCHEDULE, 0.7, 0.9, 4),
            optax.adafactor(RATE, min_dim_size_to_factor=4, decay_rate=0.7, momentum=0.9),
        ),
        (
            ScheduleFree(1e-2, SCHEDULE, 0.8, 0.9, 1e-6, weight_decay=0.0),
            optax.contrib.schedule_free(
                optax.adamw(RATE, 0.0, 0.9, 1e-6, weight_decay=0.0), RATE, 0.8
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_equals_plain_optax(optimizer, plain, clip):
    tx = dataclasses.replace(optimizer, clip=clip).build(MATRIX, MATRIX_SHAPES, STEPS)
    if clip is not None and not isinstance(optimizer, ScheduleFree):
        plain = optax.chain(CLIP, plain)
    elif clip is not None:
        plain = optax.contrib.schedule_free(
            optax.chain(CLIP, optax.adamw(RATE, 0.0, 0.9, 1e-6, weight_decay=0.0)), RATE, 0.8
        )
    gradient = lambda params: jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, params)
    start = tree(7, MATRIX_SHAPES)
    ours, theirs = (train(each, start, gradient, 5)[0] for each in (tx, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)
    assert distance(ours, start) > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamW(peak=-1e-3), "AdamW.peak is -0.001; it must be a number above 0"),
        (lambda: AdamW(peak=float("inf")), "AdamW.peak is inf"),
        (lambda: AdamW(1e-3, b1=1.0), "AdamW.b1 is 1.0"),
        (lambda: AdamW(1e-3, b2=-0.1), "AdamW.b2 is -0.1"),
        (lambda: AdamW(1e-3, eps=0.0), "AdamW.eps is 0.0"),
        (lambda: AdamW(1e-3, weight_decay=-1.0), "AdamW.weight_decay is -1.0"),
        (lambda: AdamW(1e-3, clip=0.0), "AdamW.clip is 0.0"),
        (lambda: AdamW(1e-3, moments="int8"), "one of 'float32'"),
        (lambda: Lion(1e-3, b2=2.0), "Lion.b2 is 2.0"),
        (lambda: SGD(1e-3, momentum=1.0), "SGD.momentum is 1.0"),
        (lambda: Muon(1e-3, momentum=1.5), "Muon.momentum is 1.5"),
        (lambda: Muon(1e-3, iterations=0), "Muon.iterations is 0"),
        (lambda: Muon(1e-3, rms=-0.2), "Muon.rms is -0.2"),
        (lambda: Adafactor(1e-2, exponent=1.1), "Adafactor.exponent is 1.1"),
        (lambda: Adafactor(1e-2, factor_from=0), "Adafactor.factor_from is 0"),
        (lambda: ScheduleFree(1e-3, b1=0.0), "ScheduleFree.b1 is 0.0"),
        (lambda: Averaged(of=AdamW(1e-3), decay=1.0), "Averaged.decay is 1.0"),
        (lambda: Averaged(of=ScheduleFree(1e-3)), "already averages"),
        (
            lambda: AdamW(1e-3, Constant(warmup=9)).build(MATRIX, MATRIX_SHAPES, 9),
            "warmup must be below",
        ),
    ],
)
def test_mistakes_are_said_in_a_sentence(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
