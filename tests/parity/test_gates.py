"""Gates and the layer of experts against TorchScale: who is chosen, outputs, every gradient.

What the original draws is replaced by numbers that both sides are given.
"""

import itertools
from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import original

from jscale.formats.table import Table
from jscale.formats.torchscale.moe import pairs
from jscale.models.decoder import Context
from jscale.models.draws import stream
from jscale.models.feed import MLP, Drop, Style
from jscale.models.gates import (
    Always,
    Balance,
    ByWeight,
    CosineRouter,
    Even,
    Groups,
    LinearRouter,
    Sampled,
    Share,
    Top1,
    Top2,
)
from jscale.models.gates.routing import finite
from jscale.models.moe import MoE
from jscale.models.norms import Layer

CLOSE, LOSS = 2e-5, 1e-6
TOKENS, EXPERTS = 37, 6
POLICIES = {"all": Always(), "sampling": Sampled(), "random": ByWeight()}
METADATA = {
    "entropy_gating": "gate_entropy",
    **{f"overflow_expert{i}": f"{n}_overflow" for i, n in ((1, "first"), (2, "second"))},
    **{f"unused_expert{i}_count": f"{n}_unused" for i, n in ((1, "first"), (2, "second"))},
    **{f"expert{i}_balance_top": f"{n}_top" for i, n in ((1, "first"), (2, "second"))},
    **{f"expert{i}_balance_bottom": f"{n}_bottom" for i, n in ((1, "first"), (2, "second"))},
}


def near(found, wanted, tolerance, what=""):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, what
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance, err_msg=what)


def scores(seed=0, skew=1.5):
    """Scores of tokens among which some experts are far more popular than others."""
    rng = np.random.default_rng(seed)
    popular = skew * np.arange(EXPERTS, 0, -1) / EXPERTS
    return (rng.normal(size=(TOKENS, EXPERTS)) + popular).astype(np.float32)


def fixed(monkeypatch, routing, uniforms, noise):
    """The original with these numbers for what it draws."""
    torch = original.torch()
    given = torch.tensor(np.asarray(uniforms))
    monkeypatch.setattr(torch, "rand_like", lambda x: given.reshape(x.shape))
    gumbel = torch.tensor(np.asarray(noise))
    monkeypatch.setattr(routing, "gumbel_rsample", lambda shape, device: gumbel.reshape(shape))


def gumbel(uniforms):
    return -jnp.log(-jnp.log(jnp.asarray(uniforms)))


def slots_of(combine):
    """For each token its experts and the weights it gives them, from the original's weights."""
    return combine.sum(2)


def ours_by_expert(routing):
    hit = jax.nn.one_hot(routing.experts, EXPERTS)
    return (hit * routing.weights[..., None]).sum(1)


def settings():
    """Every option of the two gates: (gate, policy, before, training, fraction, prioritised)."""
    for policy, before, (training, share), prioritised in itertools.product(
        POLICIES, (True, False), ((True, 0.25), (False, 0.25), (False, -1.0)), (False, True)
    ):
        yield 2, policy, before, training, share, prioritised
    for training, share in ((True, 0.25), (False, 0.25), (False, -1.0), (False, 0.1)):
        yield 1, "all", False, training, share, False


QUICK = {
    (2, "all", False, True, 0.25, True),
    (2, "sampling", True, True, 0.25, False),
    (2, "random", True, True, 0.25, False),
    (2, "random", False, True, 0.25, False),
    (2, "all", False, False, 0.25, False),
    (1, "all", False, True, 0.25, False),
    (1, "all", False, False, 0.1, False),
    # Layers.
    (1, True, True, "all", False, True),
    (2, False, False, "random", True, True),
    (2, True, True, "sampling", False, True),
    (2, False, True, "all", True, False),
}


def grid(every):
    """All settings, of which but a few are quick enough for every day."""
    slow = lambda setting: () if setting in QUICK else pytest.mark.slow
    return [pytest.param(s, marks=slow(s), id=str(s)) for s in every]


@pytest.mark.parametrize("setting", grid(settings()))
def test_routing_is_the_originals(setting, monkeypatch):
    """Indices exactly, weights and their gradients, the loss and its gradient, the metadata."""
    gate, policy, before, training, share, prioritised = setting
    routing = original.torchscale("component.xmoe.routing")
    torch, rng = original.torch(), np.random.default_rng(7)
    draws = rng.uniform(size=(TOKENS, EXPERTS)).astype(np.float32)
    uniforms = draws if policy == "sampling" else draws[:, 0]
    fixed(monkeypatch, routing, draws[:, 0], gumbel(draws))
    back = rng.normal(size=(TOKENS, EXPERTS)).astype(np.float32)

    given = torch.tensor(scores(), requires_grad=True)
    options = dict(eval_mode=not training, moe_eval_capacity_token_fraction=share, use_fp32=True)
    if gate == 2:
        loss, combine, mask, metadata = routing.top2gating(
            given,
            second_expert_policy=policy,
            normalize_gate_prob_before_dropping=before,
            batch_prioritized_routing=prioritised,
            **options,
        )
    else:
        loss, combine, mask, metadata = routing.top1gating(given, **options)
    (loss + (slots_of(combine) * torch.tensor(back)).sum()).backward()

    evaluation = Share(share) if share > 0 else Even()
    if gate == 2:
        moment = "before" if before else "after"
        choice = Top2(POLICIES[policy], Even(), evaluation, moment, prioritised)
    else:
        choice = Top1(Even(), evaluation)
    real = jnp.ones(TOKENS, bool)

    def both(x):
        out = choice(x, real, training=training, uniforms=jnp.asarray(uniforms))
        return out.unevenness(real) + (ours_by_expert(out) * back).sum(), out

    grad, out = jax.jit(jax.grad(both, has_aux=True))(jnp.asarray(scores()))
    chosen = np.asarray(jax.nn.one_hot(out.experts, EXPERTS).sum(1)) > 0
    assert (chosen == (mask.sum(2) > 0).numpy()).all()
    near(ours_by_expert(out), slots_of(combine).detach(), 1e-6)
    near(grad, given.grad, CLOSE)
    near(out.unevenness(real), loss.detach(), LOSS)
    for theirs, ours in METADATA.items():
        if theirs in metadata:
            near(out.reports[ours], metadata[theirs], 1e-4, theirs)
    if training and gate == 2:
        assert float(out.reports["first_overflow"]) >= 0
        assert 0 < chosen.sum() < 2 * TOKENS  # something is dropped


def test_padding_is_left_out_as_by_the_original():
    routing = original.torchscale("component.xmoe.routing")
    torch = original.torch()
    padding = np.random.default_rng(3).uniform(size=TOKENS) < 0.3
    _, combine, _, _ = routing.top2gating(
        torch.tensor(scores()), torch.tensor(padding), second_expert_policy="all"
    )
    out = Top2(Always())(jnp.asarray(scores()), jnp.asarray(~padding), training=True)
    near(ours_by_expert(out), slots_of(combine), 1e-6)
    assert (np.asarray(out.experts)[padding] == EXPERTS).all()


ARGS = Namespace(
    moe_expert_count=4,
    activation_fn="gelu",
    dropout=0.0,
    activation_dropout=0.0,
    layernorm_eps=1e-5,
    ddp_rank=0,
)
DIM, HIDDEN, ROWS, LENGTH = 16, 24, 3, 10


def layers():
    """Every kind of layer: (top, X-MoE, sub-LN, policy, before, training)."""
    for top, xmoe, subln, training in itertools.product((1, 2), (0, 1), (0, 1), (0, 1)):
        policies = [("all", False)]
        if top == 2:
            policies = [("random", True), ("sampling", False)] if training else [("all", True)]
        for policy, before in policies:
            yield top, bool(xmoe), bool(subln), policy, before, bool(training)


def theirs(top, xmoe, subln, policy, before, training):
    """The original's layer."""
    original.process_group()
    routing = original.torchscale("component.xmoe.routing")
    make = original.torchscale("component.feedforward_network").make_experts
    original.torch().manual_seed(0)
    if top == 1:
        gate = routing.Top1Gate(DIM, 4, use_fp32=True, use_xmoe=xmoe)
    else:
        gate = routing.Top2Gate(DIM, 4, True, policy, before, use_xmoe=xmoe)
    args = Namespace(**vars(ARGS), subln=subln)
    made = original.torchscale("component.xmoe.moe_layer").MOELayer
    layer = made(gate, make(args, DIM, HIDDEN), args)
    return layer.train(training)


def ours(top, xmoe, subln, policy, before, training, **more):
    choice = Top1(evaluation=Share())
    if top == 2:
        choice = Top2(
            POLICIES[policy], evaluation=Share(), normalise="before" if before else "after"
        )
    c = MoE(4, MLP(HIDDEN), CosineRouter("torchscale") if xmoe else LinearRouter(), choice, **more)
    style = Style(inner=Layer() if subln else None, drop=Drop())
    return c.build(DIM, nnx.Rngs(0), style)


def arrays(module):
    """The weights of a module as a nested dictionary, and a function of them and its inputs."""
    graph, state = nnx.split(module)

    def call(params, *inputs):
        mine = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(mine, params)
        return nnx.merge(graph, mine)(*inputs)

    return nnx.to_pure_dict(state), call


def shapes_of(params):
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params)


def table(xmoe, subln):
    return Table(pairs("", "", {}, 4, cosine=xmoe, norm=subln))


@pytest.mark.parametrize("setting", grid(layers()))
def test_the_layer_is_the_originals(setting, monkeypatch):
    """Outputs, the loss, and the gradients of tokens, gate and every expert."""
    top, xmoe, subln, policy, _, training = setting
    torch, rng = original.torch(), np.random.default_rng(1)
    x = rng.normal(size=(ROWS, LENGTH, DIM)).astype(np.float32)
    back = rng.normal(size=x.shape).astype(np.float32)
    layer = theirs(*setting)
    key = jax.random.key(5) if training else None
    shape = {"random": (ROWS * LENGTH,), "sampling": (ROWS * LENGTH, 4), "all": None}[policy]
    mine = stream(key, "gate")
    if shape is not None and mine is not None:
        drawn = jax.random.uniform(mine, (1, *shape))[0]
        fixed(monkeypatch, original.torchscale("component.xmoe.routing"), drawn, gumbel(drawn))
    given = torch.tensor(x, requires_grad=True)
    y, loss = layer(given)
    (loss + (y * torch.tensor(back)).sum()).backward()

    start, call = arrays(ours(*setting, balance=Balance(1.0)))
    rows = table(xmoe, subln)
    params = rows.read(original.weights(layer), shapes_of(start))
    for name, array in rows.write(params).items():
        np.testing.assert_array_equal(array, original.weights(layer)[name])
    context = Context(jnp.zeros((ROWS, LENGTH), jnp.int32), key=key)

    def objective(params, x):
        y, reports = call(params, x, context)
        return reports["penalty"] + (y * back).sum(), (y, reports)

    run = jax.jit(jax.grad(objective, (0, 1), has_aux=True))
    (by_weights, by_x), (mine, reports) = run(params, jnp.asarray(x))
    near(mine, y.detach(), CLOSE)
    near(reports["penalty"], loss.detach(), LOSS)
    near(by_x, given.grad, CLOSE)
    wanted = original.gradients(layer)
    for name, array in rows.write(by_weights).items():
        near(array, wanted[name], CLOSE, name)


def test_cosine_rows_need_not_have_their_norm_before():
    """The original rescales its rows when they are used, and differentiates there."""
    setting = (1, True, False, "all", False, True)
    torch, layer = original.torch(), theirs(1, True, False, "all", False, True)
    x = np.random.default_rng(1).normal(size=(ROWS * LENGTH, DIM)).astype(np.float32)
    params, call = arrays(ours(*setting).router)
    before = original.weights(layer.gate)
    params = {"reduce": before["wg_reduction.weight"].T, "vectors": before["wg"].T.copy()}
    loss, *_ = layer.gate(torch.tensor(x))
    loss.backward()
    after = np.linalg.norm(original.weights(layer.gate)["wg"], axis=1)
    assert (
        abs(after - 1.5).max() < 1e-6 < abs(np.linalg.norm(params["vectors"], axis=0) - 1.5).min()
    )

    def objective(params):
        found = call(params, jnp.asarray(x)[None])[0]
        real = jnp.ones(len(x), bool)
        return Top1()(found, real, training=True).unevenness(real)

    mine = jax.grad(objective)(params)
    near(mine["vectors"].T, layer.gate.wg.grad, CLOSE)
    near(mine["reduce"].T, layer.gate.wg_reduction.weight.grad, CLOSE)


def test_scores_that_are_no_numbers_are_the_lowest(monkeypatch):
    """Not a number and ±∞ count as the lowest finite score, as in the original."""
    torch, gate = original.torch(), theirs(1, True, False, "all", False, True).gate
    bad = scores()
    bad[3, 1], bad[5, 2], bad[8], bad[9, 0] = np.nan, np.inf, -np.inf, np.inf
    made = gate._make_finite(torch.tensor(bad.copy()))
    near(finite(jnp.asarray(bad)), made, 0)


def test_a_group_is_what_a_process_of_the_original_has():
    """Rows in two groups are what two calls with half of them are, in the encoder's order too."""
    setting = (2, False, True, "all", True, True)
    torch, layer = original.torch(), theirs(*setting)
    x = np.random.default_rng(1).normal(size=(4, LENGTH, DIM)).astype(np.float32)
    context = Context(jnp.zeros((4, LENGTH), jnp.int32), key=jax.random.key(0))
    for order in ("rows", "places"):
        turn = (lambda a: a.transpose(0, 1)) if order == "places" else (lambda a: a)
        halves = [turn(layer(turn(torch.tensor(half)))[0]) for half in (x[:2], x[2:])]
        start, call = arrays(ours(*setting, groups=Groups(2, order)))
        rows = table(False, True)
        params = rows.read(original.weights(layer), shapes_of(start))
        y, reports = jax.jit(call)(params, jnp.asarray(x), context)
        near(y, torch.cat(halves).detach(), CLOSE)
        assert float(reports["first_overflow"]) > 0
