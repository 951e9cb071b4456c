"""Layers of several kinds: each is found where it stands, and does what it would do alone."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jscale.checkpoint.names import named_leaves
from jscale.models import Llama, Model
from jscale.models.attention import SelfAttention
from jscale.models.causal import Block, Causal
from jscale.models.decoder import context_of
from jscale.models.kinds import Kinds, runs
from jscale.models.layers import SwiGLU
from jscale.pallas_kernels.attention import Mask


@pytest.mark.parametrize(
    "kinds, wanted",
    [
        ("a", [("a", 1)]),
        ("aaaa", [("a", 4)]),
        ("daaa", [("d", 1), ("a", 3)]),
        ("lglg", [("lg", 2)]),
        ("lllllg" * 4 + "ll", [("lllllg", 4), ("l", 2)]),
        ("ddd" + "cccn" * 5 + "c", [("d", 3), ("cccn", 5), ("c", 1)]),
        ("abc", [("abc", 1)]),
    ],
)
def test_few_blocks_are_compiled(kinds, wanted):
    found = runs(tuple(kinds))
    assert [("".join(map(str, run.kinds)), run.times) for run in found] == wanted
    assert "".join("".join(map(str, run.kinds)) * run.times for run in found) == kinds


@dataclass(frozen=True)
class Windows(Llama):
    """A Llama of layers with windows of their own."""

    windows: tuple[int | None, ...] = (3,)

    @property
    def kinds(self) -> Kinds:
        return Kinds(self.windows, self.kind)

    def kind(self, window, rngs):
        attend = SelfAttention(self.size, self.rotary, rngs, Mask(window=window))
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))

    def build(self, rngs, compute):
        return Causal(self, self.kinds, rngs, compute)


def config(*windows):
    return Windows(64, 32, len(windows), 4, 2, 48, windows=windows)


WINDOWS = 2, 5, None, 2, 5, None, 2


def test_every_layer_has_one_place():
    c = config(*WINDOWS)
    places = list(c.kinds.places())
    assert sorted(layer for place in places for layer in place.layers) == list(range(7))
    for place in places:
        assert {WINDOWS[layer] for layer in place.layers} == {place.kind}
    paths = {place.path for place in places}
    weights = named_leaves(Model(c).shapes)
    assert {name.removesuffix("/attend/q") for name in weights if "attend/q" in name} == paths
    for place in places:
        assert weights[f"{place.path}/attend/q"].shape[0] == len(place.layers)


def layer(params, c, number):
    """The weights of one layer, wherever it stands."""
    for place in c.kinds.places():
        if number in place.layers:
            node = params
            for name in place.path.split("/"):
                node = node[int(name) if name.isdigit() else name]
            at = place.layers.index(number)
            return jax.tree.map(lambda w, at=at: w[at], node)
    raise AssertionError(number)


@jax.jit
def hidden(params, x):
    return Model(config(*WINDOWS)).bind(params)(x).hidden


def test_layers_do_one_after_the_other_what_each_does_alone():
    c, x = config(*WINDOWS), jax.random.randint(jax.random.key(1), (2, 12), 0, 64)
    params = Model(c).init(jax.random.key(0))

    @jax.jit
    def alone(params):
        """By models of one layer each, of which only the first one's embedding is used."""
        y = Model(config(*WINDOWS)).bind(params).embed(x)
        for number, window in enumerate(WINDOWS):
            own = jax.tree.map(lambda w: w[None], layer(params, c, number))
            network = Model(config(window)).bind({**params, "blocks": {"block": own}})
            y, _ = network.blocks(y, context_of(x, None, None))
        return network.norm(y)

    by = jax.random.normal(jax.random.key(2), (2, 12, 32))
    wanted, back = jax.vjp(alone, params)
    found, ours = jax.vjp(lambda p: hidden(p, x), params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (ours(by), back(by))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_cache_of_layers_of_several_kinds_changes_nothing():
    model, x = Model(config(*WINDOWS)), jax.random.randint(jax.random.key(1), (2, 12), 0, 64)
    network = model.bind(model.init(jax.random.key(0)))
    whole, first = network(x).hidden, network(x[:, :5], cache=network.cache(2, 16))
    places = jnp.broadcast_to(jnp.arange(5, 12), (2, 7))
    rest = network(x[:, 5:], places, cache=first.cache)
    np.testing.assert_allclose(rest.hidden, whole[:, 5:], atol=1e-5)
    assert rest.cache.k.shape[0] == 7
