"""Muon makes each expert's matrix orthogonal by itself, on whatever devices it is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from optim.weights import STEPS

from jscale.checkpoint.names import named_leaves
from jscale.mesh import Layout, make_mesh
from jscale.optim import Muon

L, E, D, F = 2, 8, 16, 24
AXES = {
    "gate": P("layers", "experts", "embed", "mlp"),
    "down": P("layers", "experts", "mlp", "embed"),
}
SHAPES = {"gate": (L, E, D, F), "down": (L, E, F, D)}
MUON = Muon(1e-2, clip=None)


def drawn(seed):
    """Numbers of very different size for each expert, and none for one of each layer."""
    sizes = jnp.logspace(-3, 2, E).at[5].set(0)[None, :, None, None]
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    each = zip(keys, SHAPES.items(), strict=True)
    return {name: sizes * jax.random.normal(key, shape) for key, (name, shape) in each}


def updating(tx, params, gradients, where=None):
    """A compiled function from weights and gradients to the new weights and the state."""

    def run(params, gradients):
        state = tx.init(params)
        for gradient in gradients:
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    shardings = None if where is None else (where, None)
    return jax.jit(run, out_shardings=shardings).lower(params, gradients).compile()


def test_experts_are_as_each_alone_and_one_without_gradient_stays():
    params = jax.tree.map(lambda x: x + 1, drawn(0))
    gradients = [drawn(1), drawn(2)]
    whole, _ = updating(MUON.build(AXES, params, STEPS), params, gradients)(params, gradients)
    pick = lambda tree, *at: jax.tree.map(lambda x: x[at], tree)
    first = pick(params, 0, 0), pick(gradients, 0, 0)
    axes = {name: P(*of[2:]) for name, of in AXES.items()}
    alone = updating(MUON.build(axes, first[0], STEPS), *first)
    for at in np.ndindex(L, E):
        wanted, _ = alone(pick(params, *at), pick(gradients, *at))
        for name, w in pick(whole, *at).items():
            np.testing.assert_allclose(w, wanted[name], rtol=1e-5, atol=1e-6)
            still = params[name][at] * (1 - 1e-2 * 0.1) ** 2  # decay alone
            assert (at[1] == 5) == np.allclose(w, still, atol=1e-6)


def test_updates_and_the_names_of_the_state_are_those_of_optax():
    axes = {"w": P("layers", "experts", "embed", "mlp"), "norm": P("layers", "scale")}
    params = {"w": drawn(0)["gate"], "norm": jnp.ones((L, D))}
    gradients = [{"w": drawn(i)["gate"], "norm": jnp.ones((L, D))} for i in (1, 2, 3)]
    muon = replace(MUON, weight_decay=0.0)
    theirs = optax.contrib.muon(
        muon.schedule.build(muon.peak, STEPS),
        adam_b2=muon.b2,
        mu_dtype="float32",
        muon_weight_dimension_numbers=muon.matrices(axes),
        consistent_rms=muon.rms,
    )
    found, wanted = (
        updating(tx, params, gradients)(params, gradients)
        for tx in (muon.build(axes, params, STEPS), theirs)
    )
    for a, b in zip(*(jax.tree.leaves(each) for each in (found[0], wanted[0])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert set(named_leaves(found[1][0])) == set(named_leaves(wanted[1]))


def test_experts_stay_on_their_devices():
    params, gradients = drawn(0), [drawn(1), drawn(2)]
    tx = MUON.build(AXES, params, STEPS)
    wanted, _ = updating(tx, params, gradients)(params, gradients)
    layout = Layout(make_mesh(expert=8))
    where = layout.weight_shardings(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params), AXES
    )
    put = lambda tree: jax.device_put(tree, where)
    given = put(params), [put(g) for g in gradients]
    program = updating(tx, *given, where)
    found, _ = program(*given)
    for name in AXES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    text = program.as_text() or ""
    assert "fusion" in text or "dot" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
