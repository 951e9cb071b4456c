"""How tokens get to their experts: all ways equal the oracle; what is picked; what has no room."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import LAYOUT, assert_close

from jscale.errors import ConfigError
from jscale.mesh import Layout, Rules, make_mesh
from jscale.models.decoder import Context
from jscale.models.dispatching import NEAR, WAYS, Dispatch, Spread, choose, sends, way_of
from jscale.models.feed import GLU, Style
from jscale.models.gates import LinearRouter, TopK
from jscale.models.mixtral import Mixtral
from jscale.models.model import Model
from jscale.models.moe import MoE
from jscale.models.overlap import dealt
from jscale.models.sparse import Experts
from jscale.pallas_kernels.dispatch import Gather

B, T, D, E, C = 8, 5, 16, 8, 2  # on eight devices of `expert` an odd number of tokens each
SLOW = pytest.mark.slow
LAYER = MoE(E, GLU(16), LinearRouter(), TopK(C))
X, BACK = jax.random.normal(jax.random.key(0), (2, B, T, D)).at[0, ..., 0].set(1.0)
SEGMENTS = jnp.ones((B, T), int).at[3, 2:].set(0)
CONTEXT = Context(jnp.broadcast_to(jnp.arange(T), (B, T)), SEGMENTS)
# What is added to the scores of experts: half of them have no token; one has every token.
LOADS = {
    "drawn": jnp.zeros(E),
    "half unused": jnp.where(jnp.arange(E) % 2 == 0, 0.0, -50.0),
    "one for all": 50.0 * jax.nn.one_hot(5, E),
    "skewed": -0.7 * jnp.arange(E),
}


@dataclass(frozen=True)
class Alone:
    """A layer as a whole network."""

    feed: MoE

    def build(self, rngs, compute):
        return self.feed.build(D, rngs, Style())


def rules(**axes):
    """With other mesh axes for some logical axes, of weights and activations alike."""
    activations = {**Rules().activations, **axes}
    return replace(Rules().with_weights(**axes), activations=activations)


# `tensor` splits attention in all of them; experts within, not at all, or one from another.
RULES = {
    "usual": Rules(),
    "apart": rules(mlp=None),
    "folded": rules(mlp=None, experts=("expert", "tensor")),
}


@lru_cache
def gradients(dispatch, axes, rules="usual"):
    """A compiled function of a load: outputs, and the gradients of all weights and of tokens."""
    model = Model(Alone(replace(LAYER, dispatch=dispatch)))
    layout = Layout(make_mesh(**dict(axes)), RULES[rules])
    params = model.init(jax.random.key(1), layout)

    def objective(params, x, load):
        scores = params["router"]["kernel"].at[0].add(load)  # x has a 1 there
        with layout.active():
            y, reports = model.bind({**params, "router": {"kernel": scores}})(x, CONTEXT)
        return (y * BACK).sum() + reports["penalty"], y

    compiled = jax.jit(jax.grad(objective, (0, 1), has_aux=True))
    return lambda load: compiled(params, X, load)


MESHES: Any = [
    (("fsdp", 8 // expert // tensor), ("expert", expert), ("tensor", tensor))
    for expert in (1, 2, 4, 8)
    for tensor in (1, 2, 4, 8)
    if expert * tensor <= 8
]
MIXED, FOUR, EIGHT = MESHES[5], MESHES[8], MESHES[9]
CORE = [(EIGHT, "all_to_all", 1), (FOUR, "ragged", 2), (FOUR, "local", 1), (MIXED, "gather", 2)]
GRID = [
    pytest.param(axes, by, chunks, marks=() if (axes, by, chunks) in CORE else SLOW)
    for axes in MESHES
    for by in (WAYS if axes[1] != ("expert", 1) else ("local", "one_hot"))
    for chunks in ((1, 2) if axes in (MIXED, FOUR, EIGHT) else (1,))
]


@pytest.mark.parametrize("axes, by, chunks", GRID, ids=str)
def test_every_way_on_every_mesh_equals_the_oracle(axes, by, chunks):
    """Outputs and all gradients, whatever the load, by one-hot products on one device."""
    found, wanted = gradients(Dispatch(by, chunks=chunks), axes), gradients(Dispatch("one_hot"), ())
    for load in LOADS.values():
        assert_close(found(load), wanted(load), LAYOUT)


@pytest.mark.parametrize(
    "axes, by", [(MIXED, "gather"), *(pytest.param(FOUR, by, marks=SLOW) for by in WAYS)], ids=str
)
def test_devices_with_the_same_tokens_share_them_out(axes, by):
    """Where experts are split over `tensor` too, along which tokens are not."""
    if by == "ragged":
        with pytest.raises(ConfigError, match="expert, tensor split the experts"):
            gradients(Dispatch(by), axes, "folded")(LOADS["drawn"])
        return
    found, wanted = gradients(Dispatch(by), axes, "folded"), gradients(Dispatch("one_hot"), ())
    for load in LOADS.values():
        assert_close(found(load), wanted(load), LAYOUT)


def test_parts_need_not_be_equal():
    """Seven tokens of three devices: nothing is lost, and what is nobody's is not counted."""
    x, weights = jax.random.normal(jax.random.key(3), (7, D)), jnp.ones((7, C))
    mesh = jax.make_mesh((3,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(tokens):
        part, choices, _ = tokens
        assert part.shape == (3, D)
        return part * 2, (choices >= 0).sum()

    each = lambda *tokens: jax.tree.map(lambda a: a[None], dealt(tokens, ("tensor",), run))
    split = jax.shard_map(
        each, mesh=mesh, in_specs=jax.P(), out_specs=jax.P("tensor"), check_vma=False
    )
    y, counts = split(x, jnp.zeros((7, C), int), weights)
    assert all((own == x * 2).all() for own in y) and counts.tolist() == [3 * C, 3 * C, C]


@pytest.mark.parametrize("name", ["apart", pytest.param("folded", marks=SLOW)])
def test_attention_and_experts_are_split_independently(name):
    """Heads over `tensor`, experts over `expert` or over both; the gradients of a network."""
    experts = Experts(E, TopK(C), dispatch=Dispatch(chunks=2))
    model = Model(Mixtral(16, D, 1, 4, 2, 16, experts=experts))
    layout = Layout(make_mesh(**dict(MIXED)), RULES[name])
    tokens = jnp.arange(B * T).reshape(B, T) * 7 % 16

    def loss(layout, params):
        with layout.active():
            out = model.bind(params)(tokens)
        return (out.hidden.astype(jnp.float32) * BACK).sum() + out.penalty

    def run(layout):
        params = model.init(jax.random.key(1), layout)
        return jax.jit(jax.value_and_grad(partial(loss, layout)))(params)

    where = layout.weight_shardings(model.shapes, model.axes)["blocks"]["block"]
    split = {str(leaf.spec) for leaf in jax.tree.leaves(where["attend"])}
    assert any("tensor" in spec for spec in split) and not any("expert" in spec for spec in split)
    expert = where["feed"]["routed"]["expert"]["up"]["kernel"].spec
    assert expert[1] == {"apart": "expert", "folded": ("expert", "tensor")}[name]
    assert_close(run(layout), run(Layout(make_mesh())), LAYOUT)


def lost(chosen, by, room, chunks):
    """How many choices find no room on `MIXED`, counted device by device."""
    n, count = 2, 0
    for group in np.asarray(chosen).reshape(2, n, -1, C):  # along fsdp, then of devices
        for tokens in np.array_split(group, chunks, axis=1):  # [n, tokens, C]
            sent = np.array([[(own // (E // n) == d).sum() for d in range(n)] for own in tokens])
            rows = math.ceil(room * tokens[0].size)
            if by == "all_to_all":
                count += np.maximum(sent - math.ceil(rows / n), 0).sum()
            else:
                come = sent.sum(1) if by == "local" else sent.sum(0)
                count += np.maximum(come - rows, 0).sum()
    return count


CHECKED = [("gather", 2), ("all_to_all", 1)]
BOUNDED = [
    pytest.param(by, chunks, marks=() if (by, chunks) in CHECKED else SLOW)
    for by in WAYS
    for chunks in (1, 2)
]


@pytest.mark.parametrize("by, chunks", BOUNDED)
def test_what_finds_no_room_is_counted_once_and_gives_nothing(by, chunks):
    """On a mesh where devices along `tensor` have the same tokens; some choices are of nobody."""
    room = 0.7
    model = Model(Alone(replace(LAYER, dispatch=Dispatch(by, room, chunks)))).tight
    layout = Layout(make_mesh(**dict(MIXED)))
    params = model.init(jax.random.key(1), layout)
    keys = jax.random.split(jax.random.key(2))
    chosen = jnp.minimum(jax.random.geometric(keys[0], 0.3, (B, T, C)) - 1, E)
    weights = jax.random.uniform(keys[1], (B, T, C))

    def mixed(model, layout, chosen, weights):
        with layout.active():
            y, lost = model.bind(params)._mixed(X, chosen, weights, None)
        return (y * BACK).sum(), (y, lost)

    run = jax.jit(jax.grad(partial(mixed, model, layout), 1, has_aux=True))
    by_weights, (y, found) = run(chosen, weights)
    kept = np.asarray(by_weights) != 0
    assert found.dtype == jnp.int32 and found == lost(chosen, by, room, chunks) > 0
    assert (~kept).sum() == found + (chosen == E).sum()
    oracle = Model(Alone(replace(LAYER, dispatch=Dispatch("one_hot"))))
    assert oracle.shapes["expert"].keys() == params["expert"].keys()
    plain = jax.jit(partial(mixed, oracle, Layout(make_mesh())))
    assert_close(y, plain(jnp.where(kept, chosen, E), weights)[1][0], LAYOUT)


def test_a_room_is_kept_to_only_where_that_is_asked_for():
    """In evaluation, and when a step is done again, nothing is dropped: it is as without a room."""
    model = Model(Alone(replace(LAYER, dispatch=Dispatch("gather", 0.5, 2))))
    assert model.limited and not Model(Alone(LAYER)).limited
    layers = [m.bind(m.shapes) for m in (model, model.tight)]
    with Layout(make_mesh(expert=4)).active():
        ways = [layer.way(B * T) for layer in layers]
    assert [way.dispatcher(20) for way in ways] == [Gather("expert"), Gather("expert", 10)]


MANY = 8 * 3 * 4096 * 14336  # numbers of Mixtral's experts
HERE = Spread(("expert",), (4,), 8192, 2, 4096, MANY)
FAR = HERE._replace(ways=(4 * NEAR,))
TWO = HERE._replace(axes=("fsdp", "expert"), ways=(2, 2))


@pytest.mark.parametrize(
    "platform, spread, room, wanted",
    [
        ("gpu", HERE._replace(axes=(), ways=()), None, "local"),
        ("cpu", HERE, None, "gather"),
        ("gpu", HERE, 1.25, "gather"),
        ("gpu", HERE._replace(tokens=2**17), None, "local"),  # more numbers than all experts have
        ("gpu", FAR, 1.25, "all_to_all"),
        ("gpu", FAR, None, "local"),
        ("tpu", HERE, None, "ragged"),
        ("tpu", HERE._replace(choices=8), None, "gather"),  # a token goes to every device
        ("tpu", TWO, None, "gather"),
        ("tpu", TWO, 1.25, "all_to_all"),
    ],
)
def test_what_is_picked_sends_least_of_what_the_platform_does_well(platform, spread, room, wanted):
    picked = choose(platform, spread, room)
    assert picked.by == wanted
    if "sends least" in picked.reason:
        assert f"{picked.by} {sends(spread, room)[picked.by]:.2g}" in picked.reason


def test_what_was_measured_decides():
    found = choose("gpu", HERE, None, {"gather": 2e-3, "ragged": 1.5e-3})
    assert found == ("ragged", "measured: ragged 0.0015 s, gather 0.002 s")


def test_a_way_says_what_it_is():
    with Layout(make_mesh(fsdp=2, expert=4)).active():
        spread = Spread.under(64, C, D, 999)
        assert spread == Spread(("expert",), (4,), 8, C, D, 999)
        said = [str(way_of(asked, spread)) for asked in (Dispatch(), Dispatch("ragged", 1.5, 2))]
    assert said == [
        "experts over expert=4: gather (on CPU)",
        "experts over expert=4: ragged, in two chunks, with room for 1.5 even shares"
        " (named by the layer)",
    ]
    alone = way_of(Dispatch("gather"), Spread.under(64, C, D, 999))
    assert str(alone) == "experts: local (no mesh axis splits them)"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Dispatch("one-hot"), "no way 'one-hot' to dispatch; did you mean 'one_hot'"),
        (lambda: Dispatch(room=0.0), "Dispatch.room must be a positive number or None, not 0.0"),
        (lambda: Dispatch(room=math.nan), "must be a positive number or None, not nan"),
        (lambda: Dispatch(room=math.inf), "must be a positive number or None, not inf"),
        (lambda: Dispatch(chunks=3), "Dispatch.chunks must be 1 or 2, not 3"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
