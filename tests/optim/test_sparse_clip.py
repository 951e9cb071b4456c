"""Clipping by a norm in which experts count for less."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from optim.weights import AXES, SHAPES, STEPS, tree

from jscale.errors import ConfigError
from jscale.optim import SGD, AdamW, Averaged, Constant, Optimizer, SparseClip
from jscale.optim.sparse_clip import experts_of

PLAIN = SGD(peak=1.0, schedule=Constant(), momentum=None, clip=None)
EXPERTS = 8


def moved(optimizer, grads, params=None):
    """The gradient that comes through, from one update at rate 1; the loop's norm is given."""
    params = tree(0) if params is None else params
    tx = optax.with_extra_args_support(optimizer.build(AXES, SHAPES, STEPS))
    updates, _ = tx.update(grads, tx.init(params), params, norm=optax.tree.norm(grads))
    return jax.tree.map(jnp.negative, updates)


def squares(grads):
    """Σ g² of experts' weights and of all others, from the axes."""
    flat = jax.tree.leaves_with_path(grads)
    own = [(float((g * g).sum()), "up" in str(path)) for path, g in flat]
    return sum(s for s, mine in own if mine), sum(s for s, mine in own if not mine)


@pytest.mark.parametrize("devices", [1, 32])
def test_everything_is_scaled_by_one_factor_and_experts_too(devices):
    grads = tree(1)
    experts, others = squares(grads)
    norm = np.sqrt(others + experts / max(devices, EXPERTS))
    found = moved(SparseClip(PLAIN, most=0.5, devices=devices), grads)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b * 0.5 / norm, rtol=1e-5)
    assert norm < float(optax.tree.norm(grads))


def test_a_norm_that_is_small_enough_changes_nothing():
    """Experts whose plain norm is above the bound, and whose share of it is not."""
    grads = jax.tree.map(jnp.zeros_like, tree(1))
    grads["blocks"]["up"] += 1.0
    norm = float(optax.tree.norm(grads))
    found = moved(SparseClip(PLAIN, most=norm / 2), grads)
    jax.tree.map(np.testing.assert_array_equal, found, grads)
    plain = moved(SGD(peak=1.0, schedule=Constant(), momentum=None, clip=norm / 2), grads)
    assert float(optax.tree.norm(plain)) < 0.51 * norm


def test_experts_are_those_that_the_axis_stacks():
    assert experts_of(P("layers", "experts", "embed", "mlp"), (2, 8, 16, 32)) == 8
    assert experts_of(P("experts", "scale"), (8, 16)) == 8
    assert experts_of(P("layers", "embed", "experts"), (2, 16, 8)) is None  # a router
    assert experts_of(P("embed", "mlp"), (16, 32)) is None


def test_it_stands_where_an_optimizer_does():
    optimizer = Averaged(SparseClip(AdamW(peak=0.1, clip=None)))
    assert isinstance(optimizer, Optimizer)
    assert optimizer.rate(7, STEPS) == AdamW(peak=0.1).rate(7, STEPS)
    params = tree(0)
    tx = optimizer.build(AXES, SHAPES, STEPS)
    updates, state = jax.jit(tx.update)(tree(1), tx.init(params), params)
    assert all(bool((u != 0).any()) for u in jax.tree.leaves(updates))
    average = optimizer.evaluation_params(params, state)
    assert jax.tree.structure(average) == jax.tree.structure(params)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SparseClip(AdamW(peak=0.1)), "give AdamW clip=None"),
        (lambda: SparseClip(Averaged(AdamW(peak=0.1))), "give AdamW clip=None"),
        (lambda: SparseClip(SparseClip(PLAIN)), "clips by itself"),
        (lambda: SparseClip(PLAIN, most=0.0), "above 0"),
        (lambda: SparseClip(PLAIN, devices=0), "1 or more"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
