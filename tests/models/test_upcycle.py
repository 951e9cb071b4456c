"""A dense network as one with experts: the same outputs, and experts that part in training."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close

from jscale.errors import ConfigError
from jscale.mesh import Layout, make_mesh
from jscale.models import GPT2, Llama, Mistral, Mixtral, Qwen3, Qwen3MoE
from jscale.models.feed import Clamp
from jscale.models.gates import Limit, TopK
from jscale.models.model import Model
from jscale.models.sparse import Experts, Shared
from jscale.models.upcycle import Upcycling, upcycle

SIZES: Any = dict(vocab=32, dim=16, heads=2, kv_heads=2, hidden=32, remat="none")
LLAMA, QWEN = Llama(layers=2, **SIZES), Qwen3(layers=3, **SIZES)
MIXTRAL = Mixtral(layers=2, rope=LLAMA.rope, **SIZES)
TOKENS = jax.random.randint(jax.random.key(1), (8, 12), 0, 32)


def mixtral(count, choice, hidden=None, **more):
    return replace(MIXTRAL, experts=Experts(count, choice, hidden, **more))


def logits(config, params, tokens=TOKENS, layout=None):
    model, layout = Model(config), layout or Layout(make_mesh())
    assert model.shapes  # known before a layout is active

    def scores(params, tokens):
        with layout.active():
            network = model.bind(params)
            return network.unembed(network(tokens).hidden)

    return jax.jit(scores)(params, tokens)


WINDOWED = Mistral(layers=2, window=5, **SIZES)
PAIRS = {
    "whole": (LLAMA, mixtral(8, TopK(2))),
    "halves-of-chosen": (LLAMA, mixtral(8, TopK(4, "softmax_of_chosen"), 16)),
    "quarters-scaled": (LLAMA, mixtral(8, TopK(4, scale=2.5), 8)),
    "sums-that-differ": (LLAMA, mixtral(8, TopK(4, normalise=False), 16)),
    "sigmoids": (WINDOWED, replace(mixtral(4, TopK(2, "sigmoid", False), 16), window=5)),
    "all": (LLAMA, mixtral(4, TopK(4, normalise=False), 16)),
    "corrected-groups": (
        LLAMA,
        mixtral(8, TopK(2, "sigmoid", corrected=True, limit=Limit(2, 1)), 16, biases=True),
    ),
    "qwen": (
        QWEN,
        Qwen3MoE(layers=3, dense=(1,), experts=Experts(8, TopK(4), 16, Shared(8, True)), **SIZES),
    ),
}


SLOW = {"whole", "halves-of-chosen", "sigmoids", "all"}
EACH = [
    pytest.param(*pair, id=name, marks=[pytest.mark.slow] * (name in SLOW))
    for name, pair in PAIRS.items()
]


@pytest.mark.parametrize("dense, moe", EACH)
def test_logits_are_those_of_the_dense_network(dense, moe):
    params = Model(dense).init(jax.random.key(0))
    found = jax.jit(partial(upcycle, dense=dense, moe=moe))(params, key=jax.random.key(2))
    like = Model(moe).shapes
    jax.tree.map(
        lambda a, s: np.testing.assert_equal((a.shape, a.dtype), (s.shape, s.dtype)), found, like
    )
    assert_close(logits(moe, found), logits(dense, params), 10 * SAME)


def test_noise_within_a_copy_moves_outputs_no_further_than_itself():
    """Shards are told apart by a little, as if the router had learned a step."""
    dense, moe = PAIRS["halves-of-chosen"]
    params = Model(dense).init(jax.random.key(0))
    found = upcycle(params, dense, moe, jax.random.key(2))
    router = found["blocks"]["block"]["feed"]["routed"]["router"]
    noise = jax.random.normal(jax.random.key(3), router["kernel"].shape)
    router["kernel"] += 1e-6 * noise
    assert_close(logits(moe, found), logits(dense, params), 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "halves-of-chosen",
        *[pytest.param(n, marks=pytest.mark.slow) for n in ("whole", "sums-that-differ")],
    ],
)
def test_experts_part_in_training(name):
    """After a step no two experts are the same, and no two rows of the router."""
    dense, moe = PAIRS[name]
    params = Model(dense).init(jax.random.key(0))
    model, start = Model(moe), upcycle(params, dense, moe, jax.random.key(2))

    def loss(params):
        network = model.bind(params)
        scores = network.unembed(network(TOKENS).hidden)[:, :-1]
        each = optax.softmax_cross_entropy_with_integer_labels(scores, TOKENS[:, 1:])
        return each.mean()

    gradient = jax.jit(jax.grad(loss))(start)
    after = jax.tree.map(lambda w, g: w - 0.1 * g, start, gradient)
    routed = after["blocks"]["block"]["feed"]["routed"]
    before = start["blocks"]["block"]["feed"]["routed"]
    E, G = moe.experts.count, Upcycling(dense, moe).shards
    up, first = (r["expert"]["up"]["kernel"].reshape(2, E, -1) for r in (routed, before))
    rows = routed["router"]["kernel"].swapaxes(1, 2)
    for layer in range(2):
        np.testing.assert_array_equal(first[layer, 0], first[layer, G])
        assert len(np.unique(up[layer], axis=0)) == E
        assert len(np.unique(rows[layer], axis=0)) == E


def test_weights_of_any_mesh_go_in_and_out():
    dense, moe = PAIRS["halves-of-chosen"]
    layout = Layout(make_mesh(expert=2, fsdp=2, tensor=2))
    params = Model(dense).init(jax.random.key(0))
    plain = upcycle(params, dense, moe, jax.random.key(2))
    model, into = Model(moe), Model(dense)
    placed = jax.device_put(params, layout.weight_shardings(into.shapes, into.axes))
    where = layout.weight_shardings(model.shapes, model.axes)
    make = jax.jit(lambda p: upcycle(p, dense, moe, jax.random.key(2)), out_shardings=where)
    found = make(placed)
    assert_close(found, plain, SAME)
    assert_close(logits(moe, found, layout=layout), logits(dense, params), LAYOUT)


WRONG = {
    "rope": (
        replace(MIXTRAL, rope=5e5),
        r"must be as the dense one: rope=10000.0 \(not 500000.0\)",
    ),
    "window": (replace(MIXTRAL, window=4), r"window=None \(not 4\)"),
    "layers": (replace(MIXTRAL, layers=3), r"layers=2 \(not 3\)"),
    "head": (replace(MIXTRAL, head=4), r"head_size=8 \(not 4\)"),
    "hidden": (mixtral(8, TopK(2), 12), "hidden=32 .* must be a multiple of the experts' 12"),
    "count": (mixtral(6, TopK(4), 8), "experts.count=6 must be a multiple of the 4 experts of 8"),
    "choices": (mixtral(8, TopK(3), 16), "choices=3 must be a multiple of the 2 experts of 16"),
    "limit": (mixtral(12, TopK(4, limit=Limit(2, 1)), 8), "set its limit to None"),
    "inputs": (
        mixtral(8, TopK(2), weighs="inputs"),
        "weighs='inputs': .* must be 'results'",
    ),
    "clamp": (mixtral(8, TopK(2), clamp=Clamp()), "experts.clamp=.* must be None"),
    "family": (
        Qwen3MoE(layers=2, experts=Experts(8), **SIZES),
        "differ in attend: these",
    ),
    "none": (LLAMA, "Llama has no experts"),
}


@pytest.mark.parametrize("moe, message", WRONG.values(), ids=WRONG)
def test_what_cannot_say_the_same_is_named(moe, message):
    with pytest.raises(ConfigError, match=message):
        Upcycling(LLAMA, moe)


def test_what_is_no_dense_decoder_is_named():
    with pytest.raises(ConfigError, match="Mixtral has experts already"):
        Upcycling(MIXTRAL, MIXTRAL)
    with pytest.raises(ConfigError, match="upcycling knows no GPT2"):
        Upcycling(GPT2(vocab=32, dim=16, layers=2, heads=2), MIXTRAL)
    with pytest.raises(ConfigError, match=r"feed/down is \(32, 16\) and, with experts, \(64, "):
        Upcycling(QWEN, replace(PAIRS["qwen"][1], hidden=64))
