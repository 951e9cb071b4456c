"""Devices that share a sequence: what they exchange, and that it changes no number."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from ahead.machines import need
from attention_grid import same, value_and_grads
from close import LAYOUT, assert_close
from laws import DECODERS
from train.test_parallel import RECORD, batch, loss_and_grads

from jscale import train
from jscale.errors import ConfigError
from jscale.guard import Guard
from jscale.losses import NextToken
from jscale.mesh import AllToAll, Gather, Layout, MeshShape, Ring, Rules, abstract_mesh, make_mesh
from jscale.mesh.compat import uncached
from jscale.mesh.exchange import LONG, Shared, choose_exchange
from jscale.mesh.target import target
from jscale.models import Model
from jscale.models.attention import attend
from jscale.models.sequence import Order
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, attention
from jscale.pallas_kernels.context_attention import zigzag_places

OUTER = {"batch": ("fsdp", "expert"), "length": ("data", "context")}  # rings across the slow links
EIGHT = replace(DECODERS["llama"], heads=8, kv_heads=8)


def rules(exchange=None, **activations):
    return replace(Rules(), exchange=exchange, activations={**Rules().activations, **activations})


def task(config, axes, exchange=None, **activations):
    layout = Layout(make_mesh(**axes), rules(exchange, **activations))
    return train.Task(Model(config), RECORD, NextToken(), layout, guard=Guard(spike=None))


@cache
def alone(config):
    return loss_and_grads(task(config, {}))


def equal(config, axes, exchange=None, **activations):
    found = loss_and_grads(task(config, axes, exchange, **activations))
    assert_close(found, alone(config), LAYOUT)


def test_a_ring_gives_the_gradients_of_one_device():
    equal(DECODERS["llama"], dict(context=4), Ring())


@pytest.mark.slow
@pytest.mark.parametrize("config", [DECODERS["llama"], EIGHT], ids=["4 of 2 heads", "8 heads"])
@pytest.mark.parametrize("exchange", [None, Ring(), Gather(), AllToAll()], ids=str)
@pytest.mark.parametrize(
    "axes",
    [
        dict(context=2),
        dict(context=4),
        dict(context=8),
        dict(context=4, tensor=2),
        dict(fsdp=2, context=2, tensor=2),
        dict(fsdp=4, context=2),
    ],
    ids=str,
)
def test_every_exchange_gives_the_gradients_of_one_device(axes, exchange, config):
    here = config.heads // axes.get("tensor", 1)
    if exchange == AllToAll() and here % axes["context"]:
        with pytest.raises(ConfigError, match="heads do not divide into the"):
            equal(config, axes, exchange)
    else:
        equal(config, axes, exchange)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [None, AllToAll(Ring()), AllToAll(Gather()), Ring()], ids=str)
def test_two_axes_of_one_sequence_give_the_gradients_of_one_device(exchange):
    equal(EIGHT, dict(data=2, fsdp=2, context=2), exchange, **OUTER)


def test_the_rules_refuse_heads_that_do_not_divide():
    with pytest.raises(ConfigError, match=r"AllToAll\(.*\) needs heads that divide over context=8"):
        choose_exchange(Shared(("context",), (8,), 16, 4, 4), AllToAll())


@pytest.mark.parametrize(
    "shared, named, wanted",
    [
        (Shared(("context",), (4,), 16, 8, 4), None, AllToAll()),
        (Shared(("context",), (4,), LONG, 8, 2), None, Ring()),
        (Shared(("context",), (4,), LONG - 1, 8, 2), None, Gather()),
        (Shared(("context",), (4,), 16, 8, 4), Ring(), Ring()),
        (Shared(("context",), (4,), 16, 8, 4), AllToAll(Ring()), AllToAll()),
        (Shared(("data", "context"), (2, 4), LONG, 4, 4), None, AllToAll(Ring())),
        (Shared(("data", "context"), (2, 4), 16, 4, 4), AllToAll(), AllToAll(Gather())),
        (Shared(("data", "context"), (2, 4), 16, 4, 2), None, Gather()),
    ],
)
def test_what_is_exchanged_follows_heads_and_lengths(shared, named, wanted):
    chosen = choose_exchange(shared, named)
    assert chosen.exchange == wanted
    assert ("named by the rules" in str(chosen)) == (named is not None)


def test_the_choice_is_told_once(caplog):
    layout = Layout(abstract_mesh(MeshShape(context=4)))
    network = Model(EIGHT).bind(Model(EIGHT).shapes)
    with layout.active(), caplog.at_level("INFO", "jscale.mesh"):
        assert network.exchange(4000) == network.exchange(4000)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and told[0].startswith("attention over context=4: all-to-all (8 heads")
    assert network.exchange(4000) is None  # outside a layout


@pytest.mark.parametrize(
    "exchange, mask, length, zigzag",
    [
        (Ring(), CAUSAL, 16, True),
        (Gather(), CAUSAL, 16, True),
        (AllToAll(), CAUSAL, 16, False),  # each device has all tokens
        (Ring(), FULL, 16, False),
        (Ring(), Mask(window=4), 16, False),
        (Ring(), CAUSAL, 12, False),  # parts of three tokens have no halves
    ],
)
def test_tokens_are_in_zigzag_order_where_that_makes_work_equal(exchange, mask, length, zigzag):
    chosen = choose_exchange(Shared(("context",), (4,), length // 4, 4, 4), exchange)
    assert Order.under(mask, length, chosen) == (Order(("context",), 4) if zigzag else Order())


def sizes(N, K, T=16):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (4, T, N, 4), (4, T, K, 4), (4, T, K, 4)
    return [jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True)]


def attended(axes, exchange, marks, mask=CAUSAL, places=None, **activations):
    layout = Layout(make_mesh(**axes), rules(exchange, **activations))

    def run(q, k, v):
        with layout.active():
            return attend(q, k, v, mask, marks, places)

    return run


WHOLE = {"kv_heads": None}  # tensor=4 over two key/value heads


@pytest.mark.parametrize(
    "axes, exchange, heads, activations",
    [
        (dict(data=2, tensor=4), None, (8, 2), WHOLE),
        (dict(context=2, tensor=4), Ring(), (8, 2), WHOLE),
        pytest.param(dict(context=4, tensor=2), Gather(), (6, 2), {}, marks=pytest.mark.slow),
        (dict(data=2, context=2), AllToAll(Ring()), (4, 2), OUTER),
    ],
    ids=["heads of whole keys", "and a ring", "gather", "both"],
)
def test_packed_rows_on_a_mesh_give_the_gradients_of_one_device(axes, exchange, heads, activations):
    marks = jnp.broadcast_to(jnp.where(jnp.arange(16) < 7, 1, 2), (4, 16))
    run = attended(axes, exchange, marks, **activations)
    plain = lambda *x: attention(*x, segments=(marks, marks), implementation="reference")
    same(value_and_grads(run, *sizes(*heads)), value_and_grads(plain, *sizes(*heads)))


def test_the_step_with_a_ring_sends_parts_and_gathers_nothing():
    ring = task(DECODERS["llama"], dict(context=4), Ring())  # the program of the test above
    where = train.sharding_of(ring.layout)
    like = lambda name, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(name, x.shape))
    shapes = {name: like(name, x) for name, x in batch().items()}
    text = train.make_step(ring).lower(train.shapes(ring), shapes).compile().as_text() or ""
    assert " collective-permute(" in text
    assert " all-gather(" not in text and " all-to-all(" not in text


def for_four_chips(machine, exchange, length, heads=1, head=128):
    """The program of attention's gradients, its sequence split over four chips of a machine."""
    need(machine)
    chips = list(target(machine).devices())[:4]
    layout = Layout(make_mesh(devices=chips, context=4), rules(exchange))
    where = layout.activation_sharding("batch", "length", "heads", "head")
    x = jax.ShapeDtypeStruct((1, length, heads, head), jnp.bfloat16, sharding=where)

    def loss(q, k, v):
        with layout.active():
            places = jnp.broadcast_to(zigzag_places(length, 4), (1, length))
            places = None if exchange == AllToAll() else places  # as `Order.under` has it
            return attend(q, k, v, CAUSAL, None, places).astype(jnp.float32).sum()

    with uncached():
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()


@pytest.mark.parametrize("machine", ["v5p-8", pytest.param("v6e-8", marks=pytest.mark.slow)])
def test_on_tpus_a_ring_sends_kernels_attend_and_no_chip_holds_all_keys(machine):
    length = 8192
    program = for_four_chips(machine, Ring(), length)
    text, memory = program.as_text() or "", program.memory_analysis()
    assert "collective-permute" in text and "attention_forward" in text
    assert "all-gather" not in text and "all-to-all" not in text
    assert f"[1,{length}," not in text and f",{length},128]" not in text
    if memory is not None:  # a chip's queries, keys, values, results, their gradients, and copies
        assert memory.temp_size_in_bytes < 12 * (length // 4) * 128 * 4


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [Gather(), AllToAll()], ids=str)
def test_on_tpus_the_other_exchanges_are_what_they_are_called(exchange):
    text = for_four_chips("v5p-8", exchange, 8192, heads=4).as_text() or ""
    others = {"all-gather": Gather(), "all-to-all": AllToAll()}
    assert {name: name in text for name in others} == {n: x == exchange for n, x in others.items()}
