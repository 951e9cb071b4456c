"""The state of every optimizer is laid out as its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optim.weights import ALL, AXES, SHAPES, STEPS, tree

from jscale.optim import Adafactor, AdamW, Muon, place, state_axes
from jscale.optim.placement import kept_axes

RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
every = pytest.mark.parametrize("optimizer", ALL, ids=repr)


def shardings(axes):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    physical = lambda spec: NamedSharding(mesh, P(*(RULES.get(name) for name in spec)))
    return jax.tree.map(physical, axes)


@every
def test_axes_have_the_structure_and_the_ranks_of_the_state(optimizer):
    tx = optimizer.build(AXES, SHAPES, STEPS)
    state = jax.eval_shape(tx.init, SHAPES)
    axes = state_axes(tx, SHAPES, AXES)
    assert jax.tree.structure(axes) == jax.tree.structure(state)
    for spec, leaf in zip(jax.tree.leaves(axes), jax.tree.leaves(state), strict=True):
        for name, size in zip(spec, leaf.shape, strict=True):
            assert name is None or {"layers": 2, "embed": 16, "mlp": 32}.get(name, size) == size


@every
def test_every_big_leaf_of_the_state_is_sharded(optimizer):
    tx = optimizer.build(AXES, SHAPES, STEPS)
    state = jax.eval_shape(tx.init, SHAPES)
    placement = place(tx, SHAPES, AXES)
    lost = sum(each.bytes for each in placement.replicated)
    assert lost <= 64  # counters of layers, coefficients
    total = sum(leaf.size for leaf in jax.tree.leaves(state))
    named = sum(
        leaf.size
        for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(placement.axes), strict=True)
        if any(spec)
    )
    assert named > 0.95 * total or total == named + len(jax.tree.leaves(state))


@pytest.mark.parametrize("optimizer", [AdamW(1e-3), Adafactor(1e-2, factor_from=4), Muon(1e-3)])
def test_state_is_born_and_stays_sharded_on_eight_devices(optimizer):
    axes = {"embed": AXES["embed"], "up": AXES["blocks"]["up"], "norm": AXES["norm"]}
    shapes = {"embed": SHAPES["embed"], "up": SHAPES["blocks"]["up"], "norm": SHAPES["norm"]}
    tx = optimizer.build(axes, shapes, STEPS)
    laid_out = shardings(axes)
    wanted = shardings(state_axes(tx, shapes, axes))
    params = jax.device_put(tree(0, shapes), laid_out)
    state = jax.jit(tx.init, out_shardings=wanted)(params)
    checked = 0
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        pieces = {name for name in sharding.spec if name}
        divided = leaf.addressable_shards[0].data.size
        assert divided * {"fsdp": 4, "tensor": 2}.get("".join(pieces), 8 if pieces else 1) == (
            leaf.size
        )
        checked += bool(pieces)
    assert checked >= 3
    step = jax.jit(tx.update, out_shardings=(laid_out, wanted))
    updates, after = step(params, state, params)
    alone = jax.jit(tx.update)(*jax.device_get((params, state, params)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, jax.device_get((updates, after)), jax.device_get(alone))


@pytest.mark.parametrize("optimizer", [each for each in ALL if isinstance(each, AdamW)], ids=repr)
def test_agrees_with_optax_own_map_over_parameters(optimizer):
    tx = optimizer.build(AXES, SHAPES, STEPS)
    theirs = optax.tree_map_params(
        tx,
        lambda _, spec: spec,
        jax.eval_shape(tx.init, SHAPES),
        AXES,
        transform_non_params=lambda _: P(),
    )
    assert state_axes(tx, SHAPES, AXES) == theirs


def test_state_of_a_users_own_kind_is_replicated_and_listed():
    def init(params):
        flat = jnp.concatenate([p.ravel() for p in jax.tree.leaves(params)])
        return {"memory": flat, "mirror": params, "count": jnp.zeros((), jnp.int32)}

    tx = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    placement = place(tx, SHAPES, AXES)
    assert placement.axes["mirror"] == AXES
    assert placement.axes["memory"] == P(None) and placement.axes["count"] == P()
    size = sum(leaf.size for leaf in jax.tree.leaves(SHAPES))
    assert placement.replicated == (("memory", (size,), 4 * size),)


@pytest.mark.parametrize(
    ("shape", "whole", "axes", "wanted"),
    [
        ((2, 3), (2, 3), P("a", "b"), P("a", "b")),
        ((2,), (2, 3), P("a", "b"), P("a")),
        ((3,), (2, 3), P("a", "b"), P("b")),
        ((2, 1), (2, 3), P("a", "b"), P("a", None)),
        ((1, 3), (2, 3), P("a", "b"), P(None, "b")),
        ((5, 3), (5, 3, 3), P("a", "b", "c"), P("a", None)),
        ((3,), (3, 3), P("a", "b"), None),  # rows or columns? nobody can tell
        ((3,), (3, 3), P("a", "a"), P("a")),
        ((1,), (2, 3), P("a", "b"), P(None)),
        ((2,), (2, 3), P(("x", "y"), None), P(("x", "y"))),
        ((), (2, 3), P("a", "b"), P()),
        ((7,), (2, 3), P("a", "b"), None),
        ((2,), (2, 3), P(), None),
        ((6, 2, 3), (2, 3), P("a", "b"), None),
    ],
)
def test_kept_axes(shape, whole, axes, wanted):
    assert kept_axes(shape, whole, axes) == wanted
