"""The layer of experts: equal to what it must equal, on any mesh, whatever the gate decides."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close

from jscale import train
from jscale.errors import ConfigError
from jscale.flops import flops_per_token
from jscale.generate import Sampling, generate
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh
from jscale.models import EncoderDecoder, RetNet, TransformerDecoder
from jscale.models.decoder import Context
from jscale.models.dispatching import Dispatch
from jscale.models.feed import GLU, MLP, Drop, Style
from jscale.models.gates import (
    Always,
    Balance,
    CosineRouter,
    Even,
    Groups,
    LinearRouter,
    Top1,
    Top2,
)
from jscale.models.load import PREFIX
from jscale.models.model import Model
from jscale.models.moe import MoE
from jscale.models.norms import RMS, Layer
from jscale.models.positions import Rope
from jscale.models.residual import PreNorm

B, T, D, E = 8, 8, 16, 8
KEY = jax.random.key(3)
PADDED = jnp.where(jnp.arange(T) < jnp.array([8, 8, 5, 8, 1, 8, 0, 7])[:, None], 1, 0)


@dataclass(frozen=True)
class Alone:
    """A layer as a whole network, so that a `Model` has its weights and their axes."""

    feed: MoE | MLP | GLU
    style: Style = Style(inner=Layer())

    def build(self, rngs, compute):
        return self.feed.build(D, rngs, self.style)


EVEN = Balance(1.0)
MIXTURE = MoE(E, MLP(32), CosineRouter(), Top2(training=Even(0.75)), Groups(4), balance=EVEN)


def inputs(seed=0):
    x, back = jax.random.normal(jax.random.key(seed), (2, B, T, D))
    return x, back, Context(jnp.broadcast_to(jnp.arange(T), (B, T)), PADDED, key=KEY)


def run(model, params, x, context):
    """What a layer makes of its inputs."""
    return jax.jit(lambda *given: model.bind(given[0])(*given[1:]))(params, x, context)


@lru_cache
def computed(config, axes=()):
    """Output, reports, and the gradients of weights and tokens, on a mesh of these axes."""
    model, (x, back, context) = Model(config), inputs()
    layout = Layout(make_mesh(**dict(axes)))
    params = model.init(jax.random.key(1), layout)

    def objective(params, x):
        with layout.active():
            y, reports = model.bind(params)(x, context)
        return (y * back).sum() + reports.get("penalty", 0.0), (y, reports)

    return jax.jit(jax.grad(objective, (0, 1), has_aux=True))(params, x)


MESHES = {
    "2": dict(expert=2),
    "4": dict(expert=4),
    "8": dict(expert=8),
    "fsdp": dict(fsdp=2, expert=2, tensor=2),
    "context": dict(context=2, expert=4),
    "no-expert-axis": dict(data=2, fsdp=2, tensor=2),
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "mesh, exchange",
    [
        ("8", "gather"),
        ("fsdp", "ragged"),
        *[
            pytest.param(mesh, exchange, marks=SLOW)
            for mesh in MESHES
            for exchange in ("gather", "ragged", "all_to_all")
            if (mesh, exchange) not in (("8", "gather"), ("fsdp", "ragged"))
        ],
    ],
)
def test_every_mesh_gives_what_one_device_does(mesh, exchange):
    """Outputs, reports and all gradients; tokens are dropped, some are padding."""
    config = replace(MIXTURE, dispatch=Dispatch(exchange))
    found = computed(Alone(config), tuple(MESHES[mesh].items()))
    wanted = computed(Alone(MIXTURE))
    assert_close(found, wanted, LAYOUT)
    assert wanted[1][1]["first_overflow"] > 0


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Alone(replace(MIXTURE, of=GLU(32)), Style(inner=RMS())), marks=SLOW),
        pytest.param(
            Alone(replace(MIXTURE, choice=Top1(Even(0.75)), groups=Groups(1, "places")), Style()),
            marks=SLOW,
        ),
    ],
    ids=["glu", "one-group"],
)
def test_other_experts_and_one_group_on_a_mesh(config):
    assert_close(computed(config, tuple(MESHES["fsdp"].items())), computed(config), LAYOUT)


@pytest.mark.parametrize(
    "of, inner",
    [(MLP(32), Layer()), (GLU(32), RMS()), pytest.param(MLP(32), None, marks=SLOW)],
)
def test_equal_experts_are_the_dense_layer_times_the_weight_that_is_kept(of, inner):
    """X-MoE's and GShard's sanity: the dense feed-forward, scaled by the kept gate mass."""
    style, (x, _, context) = Style(inner=inner), inputs()
    config = replace(MIXTURE, of=of, choice=Top2(training=Even(0.5), normalise="before"))
    dense = Model(Alone(of, style))
    params = dense.init(jax.random.key(2))
    mixture = Model(Alone(config, style))
    start = mixture.init(jax.random.key(1))
    equal = jax.tree.map(lambda w: jnp.broadcast_to(w, (E, *w.shape)), params)
    start["expert"] = equal
    y, _ = run(mixture, start, x, context)
    routing = jax.jit(lambda x: mixture.bind(start).route(x, context)[0])(x)
    wanted = run(dense, params, x, context)[0] * routing.weights.sum(-1, keepdims=True)
    assert_close(y, wanted, 3 * SAME)
    kept = routing.weights.sum(-1)
    assert ((kept == 0) >= (PADDED == 0)).all() and 0 < float((kept[PADDED == 1] == 0).mean()) < 1


def test_without_capacity_it_is_zero_and_experts_learn_nothing():
    config = Alone(replace(MIXTURE, choice=Top2(Always(), Even(0.0))))
    (by_weights, _), (y, reports) = computed(config)
    assert (y == 0).all() and reports["first_overflow"] == 100
    assert all((g == 0).all() for g in jax.tree.leaves(by_weights["expert"]))
    assert any((g != 0).any() for g in jax.tree.leaves(by_weights["router"]))  # by the penalty


def test_one_expert_for_all_tokens():
    """The others learn nothing, and it is the dense layer of this expert."""
    model, (x, back, context) = Model(Alone(replace(MIXTURE, scores=LinearRouter()))), inputs()
    params = model.init(jax.random.key(1))
    params["router"]["kernel"] = jnp.zeros((D, E)).at[0, 5].set(100.0)
    x = x.at[..., 0].set(1.0)
    feed = replace(MIXTURE, scores=LinearRouter(), choice=Top1(None))
    one = Model(Alone(feed))

    def objective(p):
        y = one.bind(p)(x, context)[0]
        return (y * back).sum(), y

    grads, y = jax.jit(jax.grad(objective, has_aux=True))(params)
    grads = grads["expert"]
    for grad in jax.tree.leaves(grads):
        assert (grad.at[5].set(0.0) == 0).all() and (grad[5] != 0).any()
    own = jax.tree.map(lambda w: w[5], params["expert"])
    dense = run(Model(Alone(MLP(32))), own, x, context)[0]
    assert_close(y, jnp.where(PADDED[..., None] == 1, dense, 0.0), 3 * SAME)


def test_padding_is_not_routed_unless_asked_for():
    x, _, context = inputs()
    for padding in (False, True):
        feed = replace(MIXTURE, padding=padding, choice=Top1(None))
        y = computed(Alone(feed))[1][0]
        assert ((y != 0).any(-1) == (padding | (PADDED == 1))).all()


def test_no_rows():
    model = Model(Alone(replace(MIXTURE, groups=Groups(1))))
    context = Context(jnp.zeros((0, T), jnp.int32), key=KEY)
    y, reports = run(model, model.init(jax.random.key(0)), jnp.zeros((0, T, D)), context)
    assert y.shape == (0, T, D) and all(
        bool(jnp.isfinite(r)) for name, r in reports.items() if not name.startswith(PREFIX)
    )
    assert reports[PREFIX].tokens == 0 and not reports[PREFIX].chosen.any()


def test_evaluation_draws_nothing_and_needs_no_groups():
    """Nothing is dropped, and a token's output depends on no other: a part gives the same."""
    model, (x, _, context) = Model(Alone(MIXTURE)), inputs()
    params = model.init(jax.random.key(1))
    still = context._replace(key=None, segments=None)
    y = run(model, params, x, still)[0]
    part = Context(still.positions[:3, :5])
    assert_close(run(model, params, x[:3, :5], part)[0], y[:3, :5], 3 * SAME)
    assert not np.allclose(run(model, params, x, context)[0], y)


def test_tokens_in_another_place_are_routed_in_the_order_of_the_text():
    """Under a zig-zag order the same tokens are dropped, and the same numbers drawn."""
    model = Model(Alone(MIXTURE))
    params = model.init(jax.random.key(1))
    x, _, context = inputs()
    places = jnp.broadcast_to(jnp.array([0, 1, 6, 7, 2, 3, 4, 5]), (B, T))
    move = lambda a: jnp.take(a, places[0], 1)
    moved = context._replace(segments=move(context.segments), places=places)
    found, told = run(model, params, move(x), moved)
    wanted, reports = run(model, params, x, context)
    assert_close(found, move(wanted), 3 * SAME)
    assert_close(told, reports, 3 * SAME)


def test_units_inside_experts_are_dropped():
    feed = replace(MIXTURE, choice=Top1(None))
    dry = computed(Alone(feed, Style()))[1][0]
    for drop in (Drop(activation=0.5), Drop(units=0.5)):
        wet = computed(Alone(feed, Style(drop=drop)))[1][0]
        assert bool(jnp.isfinite(wet).all()) and not np.allclose(wet, dry)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: replace(MIXTURE, experts=0), "at least 1"),
        (lambda: replace(MIXTURE, experts=1, choice=Top2()), "there are 1: set experts to at"),
        (lambda: Dispatch("rags"), "did you mean 'ragged'"),
        (lambda: computed(Alone(replace(MIXTURE, groups=Groups(3)))), "3 groups of tokens"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


SIZES: Any = dict(vocab=16, dim=D, layers=4, heads=2, remat="full")
FEEDS = MLP(32), MoE(4, MLP(32), choice=Top2(), groups=Groups(8))
DECODER = TransformerDecoder(feed=FEEDS, positions=(Rope(),), **SIZES)
RETNET = RetNet(value=32, feed=(GLU(32), FEEDS[1]), **SIZES)


@lru_cache
def trained(config, axes, steps):
    """The losses of a short run, and its last metrics."""
    layout = Layout(make_mesh(**dict(axes)))
    task = train.Task(Model(config), optax.adam(1e-2), NextToken(), layout)
    tokens = np.random.default_rng(0).integers(0, 16, (8, 1)) + np.arange(17)
    batch = {
        "inputs": tokens[:, :-1] % 16,
        "targets": tokens[:, 1:] % 16,
        "weights": np.ones((8, 16)),
    }
    where = train.sharding_of(layout)
    batch = {n: jax.device_put(jnp.asarray(a), where(n, a.shape)) for n, a in batch.items()}
    state, step, losses = train.init(task, jax.random.key(0)), train.make_step(task), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(metrics)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(replace(DECODER, layers=2, feed=FEEDS[1]), id="all-layers"),
        pytest.param(DECODER, marks=SLOW, id="every-second"),
        pytest.param(RETNET, marks=SLOW, id="retnet"),
    ],
)
def test_networks_train_on_eight_devices_as_on_one(config):
    """Experts are split over devices; second ones are drawn, and tokens dropped."""
    losses, metrics = trained(config, (("fsdp", 2), ("expert", 4)), 3)
    alone, _ = trained(config, (), 20)
    np.testing.assert_allclose(losses, alone[:3], rtol=1e-4)
    assert alone[-1] < 0.7 * alone[0]
    assert {"balance", "gate_entropy", "first_overflow", "second_unused"} <= set(metrics)
    assert 0.9 < metrics["balance"] < 4


@pytest.mark.parametrize(
    "config", [DECODER, pytest.param(RETNET, marks=SLOW)], ids=["decoder", "retnet"]
)
def test_every_layer_with_experts_reports_and_is_in_the_penalty(config):
    """Two of four layers; the same key gives the same, another one does not."""
    model, tokens = Model(config), jnp.arange(32).reshape(8, 4) % 16
    params = model.init(jax.random.key(0))
    call = jax.jit(lambda key: model.bind(params, key)(tokens)._replace(cache=None))
    drawn, again, other = (call(jax.random.key(i)) for i in (0, 0, 1))
    assert_close(drawn.penalty, 0.01 * drawn.reports["balance"].sum(), 3 * SAME)
    assert all(report.shape == (2,) for report in drawn.reports.values())
    assert (drawn.hidden == again.hidden).all() and not (drawn.hidden == other.hidden).all()


@pytest.mark.slow
@pytest.mark.parametrize("config", [DECODER, RETNET], ids=["decoder", "retnet"])
def test_text_goes_on_as_without_a_cache(config):
    """Token by token each expert sees fewer at once, and gives the same; nothing is dropped."""
    model = Model(config)
    params, prompt = model.init(jax.random.key(1)), [[1, 2, 3], [5, 4, 9]]
    found = generate(model, params, prompt, length=4, sampling=Sampling(temperature=0.0))
    whole = jnp.asarray([p + f for p, f in zip(prompt, found, strict=True)])

    @jax.jit
    def read(params, x):
        network = model.bind(params)
        out = network(x)
        return network.unembed(out.hidden), out.reports

    scores, reports = read(params, whole)
    assert found == scores[:, 2:-1].argmax(-1).tolist()
    assert all((reports[f"{name}_overflow"] == 0).all() for name in ("first", "second"))


@pytest.mark.slow
def test_an_encoder_decoder_reads_with_experts():
    """Both stacks report; what was read is kept, and tokens follow it as in one pass."""
    model = Model(EncoderDecoder(16, D, (2, 4), 2, FEEDS, positions=(Rope(),)))
    params, source = model.init(jax.random.key(0)), jnp.arange(12).reshape(2, 6)
    tokens, places = source[:, :5] + 3, jnp.broadcast_to(jnp.arange(5), (2, 5))

    @jax.jit
    def both(params):
        network = model.bind(params)
        out = network(source, tokens)
        first = network.further(tokens[:, :3], places[:, :3], network.read(source, None, 5))
        second = network.further(tokens[:, 3:], places[:, 3:], first.cache)
        return jnp.concatenate([first.hidden, second.hidden], 1), out.hidden, out.reports

    found, wanted, reports = both(params)
    assert_close(found, wanted, 10 * SAME)
    assert reports["encoder_balance"].shape == (1,) and reports["balance"].shape == (2,)


@pytest.mark.parametrize("choice, of", [(Top1(), MLP(32)), (Top2(), GLU(32))], ids=["1", "2"])
def test_a_token_costs_the_experts_that_it_uses(choice, of):
    """FLOPs and active weights are those of so many feed-forwards and of the router."""
    count = choice.choices
    plain = TransformerDecoder(feed=of, residual=PreNorm(), positions=(), **SIZES)
    mixed = replace(plain, feed=(of, MoE(E, of, choice=choice)))
    each, one, many = Model(Alone(of, Style())), Model(plain), Model(mixed)
    router = D * E
    matrices = (3 if isinstance(of, GLU) else 2) * 32 * D
    more = flops_per_token(many, 8) - flops_per_token(one, 8)
    assert more == 6 * 2 * (router + (count - 1) * matrices)  # in two of four layers
    assert many.active == one.size + 2 * (router + (count - 1) * each.size)
    assert many.size == one.size + 2 * (router + (E - 1) * each.size)


@pytest.mark.parametrize("make", [lambda c: replace(c, layers=3), lambda c: replace(c, feed=())])
@pytest.mark.parametrize("config", [DECODER, RETNET], ids=["decoder", "retnet"])
def test_layers_are_whole_turns(config, make):
    with pytest.raises(ConfigError, match="take turns|empty tuple"):
        make(config)


def test_a_norm_within_is_the_feed_forwards_own_choice():
    """As experts of TorchScale's RetNet have it, whose blocks have none."""
    for style in (Style(), Style(inner=RMS())):
        shapes = Model(Alone(MoE(E, MLP(32, inner=Layer())), style)).shapes["expert"]["norm"]
        assert {name: shape.shape for name, shape in shapes.items()} == {
            "scale": (E, 32),
            "bias": (E, 32),
        }
