"""Experts that are never full: choices as their formulas, layers as loops, on any mesh."""

from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import LAYOUT, SAME, assert_close

from jscale.errors import ConfigError
from jscale.mesh import Layout, make_mesh
from jscale.models.decoder import Context
from jscale.models.dispatching import Dispatch
from jscale.models.gates import Balance, Choice, Limit, TopK
from jscale.models.model import Model
from jscale.models.sparse import Experts, Shared

S, E = 7, 8
SCORES = jax.random.normal(jax.random.key(0), (S, E)) * 2
REAL = jnp.arange(S) != 3
CORRECTION = jax.random.normal(jax.random.key(1), (E,))
CHOICES = {
    "softmax": TopK(3, normalise=False),
    "normalised": TopK(2),
    "of the chosen": TopK(3, "softmax_of_chosen", scale=2.0),
    "sigmoid": TopK(1, "sigmoid", normalise=False),
    "deepseek 2": TopK(3, normalise=False, scale=16.0, limit=Limit(4, 2, best=1)),
    "deepseek 3": TopK(4, "sigmoid", scale=2.5, corrected=True, limit=Limit(4, 2)),
}


def wanted(choice: TopK, x: np.ndarray, correction: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Experts and weights of one token, by loops."""
    p = np.exp(x - x.max())
    values = {"softmax": p / p.sum(), "softmax_of_chosen": x, "sigmoid": 1 / (1 + np.exp(-x))}
    v = values[choice.weights]
    ranked = v + correction if choice.corrected else v.copy()
    if isinstance(limit := choice.limit, Limit):
        groups = np.split(ranked, limit.groups)
        good = [np.sort(group)[-limit.best :].sum() for group in groups]
        for number in np.argsort(good)[: limit.groups - limit.kept]:
            groups[number][:] = -np.inf
    chosen = np.argsort(-ranked)[: choice.choices].tolist()
    w = p[chosen] if choice.weights == "softmax_of_chosen" else v[chosen]
    normalised = choice.normalise or choice.weights == "softmax_of_chosen"
    return chosen, choice.scale * w / (w.sum() if normalised else 1)


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_its_formula(name):
    choice = CHOICES[name]
    more = {"correction": CORRECTION} if choice.corrected else {}
    out = choice(SCORES, REAL, training=True, **more)
    for token in range(S):
        if not REAL[token]:
            assert (out.experts[token] == E).all() and not out.weights[token].any()
            continue
        experts, weights = wanted(choice, np.asarray(SCORES)[token], np.asarray(CORRECTION))
        assert out.experts[token].tolist() == experts
        np.testing.assert_allclose(out.weights[token], weights, rtol=1e-5)
    assert isinstance(choice, Choice) and choice.draws(S, E) is None
    assert set(out.reports) == {"gate_entropy", "chosen_unused", "chosen_top", "chosen_bottom"}


def test_the_loss_is_1_where_use_is_even_and_e_over_k_where_all_have_the_same():
    even = jnp.eye(4)[jnp.arange(8) % 4] * 1e-3
    choice = TopK(1)
    real = jnp.ones(8, bool)
    assert abs(float(choice(even, real, training=True).unevenness(real)) - 1) < 1e-5
    same = jnp.tile(jnp.array([[50.0, 50.0, 0.0, 0.0]]), (8, 1))
    assert abs(float(TopK(2)(same, real, training=True).unevenness(real)) - 2) < 1e-5


def test_a_correction_chooses_without_weighting_and_has_no_gradient():
    choice, real = CHOICES["deepseek 3"], jnp.ones(S, bool)
    weigh = lambda s, c: choice(s, real, training=True, correction=c).weights[:, 0].sum()
    by_scores, by_correction = jax.grad(weigh, (0, 1))(SCORES, CORRECTION)
    assert by_scores.any() and not by_correction.any()
    # Chosen experts are of kept groups, also where all that they are chosen by is negative.
    out = choice(SCORES, real, training=True, correction=CORRECTION - 100)
    assert all(len(set((row // 2).tolist())) == 2 for row in out.experts)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TopK(0), "choices must be at least 1, not 0"),
        (lambda: TopK(weights="softmix"), "no weights 'softmix' of TopK; did you mean 'softmax'"),
        (lambda: TopK(2, "softmax_of_chosen", normalise=False), "normalise must be True"),
        (lambda: Limit(4, 5), "keeps 5 groups of experts and has 4"),
        (lambda: Limit(4, 0), "kept must be at least 1, not 0"),
        (lambda: Experts(4, TopK(5)), "set experts to at least 5"),
        (lambda: Experts(6, TopK(2, limit=Limit(4, 1))), "6 experts cannot be 4 equal groups"),
        (lambda: Experts(8, TopK(3, limit=Limit(4, 1))), "has 3 experts, and the groups kept for"),
        (lambda: Experts(4, TopK(1, limit=Limit(4, 1))), "best=2 must be at most a group's 1"),
        (lambda: Experts(4, weighs="outputs"), "weighs must be 'results' or 'inputs'"),
        (lambda: Shared(0), "hidden must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


B, T, D, F = 4, 6, 16, 24


@dataclass(frozen=True)
class Alone:
    """A layer as a whole network."""

    experts: Experts

    def build(self, rngs, compute):
        return self.experts.build(D, F, rngs)


EVEN = Balance(1.0)
LAYER = Alone(Experts(8, CHOICES["deepseek 3"], shared=Shared(12, gated=True), balance=EVEN))
X, BACK = jax.random.normal(jax.random.key(2), (2, B, T, D))
SEGMENTS = jnp.ones((B, T), int).at[1, 4:].set(0)
CONTEXT = Context(jnp.broadcast_to(jnp.arange(T), (B, T)), SEGMENTS)


@lru_cache
def computed(config, axes=()):
    """Output, reports, and the gradients of weights and tokens, on a mesh of these axes."""
    model, layout = Model(config), Layout(make_mesh(**dict(axes)))
    params = model.init(jax.random.key(1), layout)
    params["routed"]["router"]["kernel"] *= 4

    def objective(params, x):
        with layout.active():
            y, reports = model.bind(params)(x, CONTEXT)
        return (y * BACK).sum() + reports["penalty"], (y, reports)

    return jax.jit(jax.grad(objective, (0, 1), has_aux=True))(params, X)


def by_loops(params, x, config):
    """The layer, one expert of all tokens after another; its gradient is JAX's own."""
    c, w = config.experts, params["routed"]
    swiglu = lambda x, gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down
    more = {"correction": w["correction"]} if c.choice.corrected else {}
    x, real = x.reshape(-1, D), SEGMENTS.reshape(-1) != 0
    routing = c.choice(x @ w["router"]["kernel"], real, training=False, **more)
    whole, x = x, x if c.latent is None else x @ w["reduce"]["kernel"]
    weights = jax.nn.one_hot(routing.experts, c.count) * routing.weights[:, :, None]
    y = jnp.zeros_like(x)
    for e, by in enumerate(weights.sum(1).T[:, :, None]):
        mine = [w["expert"][name]["kernel"][e] for name in ("gate", "up", "down")]
        y += swiglu(by * x, *mine) if c.weighs == "inputs" else by * swiglu(x, *mine)
    y = y if c.latent is None else y @ w["restore"]["kernel"]
    if c.shared is not None:
        shared = swiglu(whole, *(params["shared"][name] for name in ("gate", "up", "down")))
        gate = jax.nn.sigmoid(whole @ params["shared_gate"])[:, None] if c.shared.gated else 1.0
        y += gate * shared
    return y.reshape(X.shape), routing.unevenness(real)


@pytest.mark.parametrize(
    "config",
    [
        LAYER,
        Alone(Experts(8, TopK(2, "sigmoid", normalise=False), weighs="inputs", balance=EVEN)),
        Alone(Experts(8, TopK(2), shared=Shared(12), latent=8, balance=EVEN)),
    ],
    ids=["deepseek 3", "inputs", "latent"],
)
def test_a_layer_is_its_formula_in_values_and_gradients(config):
    params = Model(config).init(jax.random.key(1))
    params["routed"]["router"]["kernel"] *= 4
    grads, (y, reports) = computed(config)

    def objective(params, x):
        y, penalty = by_loops(params, x, config)
        return (y * BACK).sum() + penalty, (y, penalty)

    back, wanted = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(params, X)
    assert_close((y, reports["penalty"]), wanted, 10 * SAME)
    assert_close(grads, back, 30 * SAME)


MESHES = (dict(expert=4), dict(fsdp=2, expert=2, tensor=2), dict(context=2, expert=4))


@pytest.mark.parametrize(
    "axes, exchange",
    [
        (MESHES[1], "gather"),
        pytest.param(MESHES[0], "ragged", marks=pytest.mark.slow),
        pytest.param(MESHES[2], "all_to_all", marks=pytest.mark.slow),
        pytest.param(MESHES[2], "gather", marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_what_one_device_does(axes, exchange):
    config = Alone(replace(LAYER.experts, dispatch=Dispatch(exchange)))
    assert_close(computed(config, tuple(axes.items())), computed(LAYER), LAYOUT)
