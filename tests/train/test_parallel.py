"""The same step on every layout: loss and every gradient equal one device."""

from functools import lru_cache

import jax
import numpy as np
import optax
import pytest
from close import LAYOUT, assert_close
from laws import DECODERS

from jscale import train
from jscale.guard import Guard
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh
from jscale.models import Model

ROWS, LENGTH = 8, 16
LAYOUTS = {
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "tensor": dict(tensor=2),
    "context": dict(context=4),
    "stage": dict(stage=2),
    "fsdp-tensor": dict(fsdp=4, tensor=2),
    "data-fsdp-tensor": dict(data=2, fsdp=2, tensor=2),
    "data-context-tensor": dict(data=2, context=2, tensor=2),
    "fsdp-context-tensor": dict(fsdp=2, context=2, tensor=2),
}


def batch():
    """Random rows of packed documents, some tokens without weight, unevenly over the rows."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (ROWS, LENGTH + 1), np.int32)
    cuts = rng.integers(1, LENGTH, (ROWS, 1))
    place = np.arange(LENGTH)[None]
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (rng.random((ROWS, LENGTH)) < np.linspace(0.2, 1, ROWS)[:, None]).astype(
            np.float32
        ),
        "segments": np.where(place < cuts, 1, 2).astype(np.int32),
        "positions": np.where(place < cuts, place, place - cuts).astype(np.int32),
    }


# An optimizer whose state is the gradient that it was given.
RECORD = optax.GradientTransformation(
    lambda params: jax.tree.map(jax.numpy.zeros_like, params),
    lambda updates, state, params=None: (jax.tree.map(jax.numpy.zeros_like, updates), updates),
)


def task(config, axes, accumulate=1):
    layout = Layout(make_mesh(**axes))
    model = Model(config)
    return train.Task(
        model, RECORD, NextToken(), layout, guard=Guard(spike=None), accumulate=accumulate
    )


def loss_and_grads(task):
    state = train.init(task, jax.random.key(0))
    before = jax.device_get(state.params)
    sharding_of = train.sharding_of(task.layout)
    where = {name: sharding_of(name, x.shape) for name, x in batch().items()}
    state, metrics = train.make_step(task)(state, jax.device_put(batch(), where))
    return float(metrics["loss"]), float(metrics["grad_norm"]), before, state.optimizer


@lru_cache
def alone(name):
    return loss_and_grads(task(DECODERS[name], {}))


# Of all but Llama, by default only the layout that splits weights, rows and sequences at once.
MOST = "fsdp-context-tensor"
CASES = [
    pytest.param(name, axes, marks=[] if brief else pytest.mark.slow, id=f"{name}-{layout}")
    for name in DECODERS
    for layout, axes in LAYOUTS.items()
    for brief in [name == "llama" or layout == MOST]
]


# What lies between two steps of BitNet's eight bits may fall to either: of a gradient's largest
# number, one such activation changes half a per cent.
TOLERANCE = {"bitnet": 2e-2}


@pytest.mark.parametrize("name, axes", CASES)
def test_every_layout_gives_the_gradients_of_one_device(name, axes):
    assert_close(
        loss_and_grads(task(DECODERS[name], axes)), alone(name), TOLERANCE.get(name, LAYOUT)
    )


@pytest.mark.parametrize("axes", [{}, dict(fsdp=2), dict(data=2, tensor=2)], ids=str)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_gradients_of_the_large_batch(accumulate, axes):
    name = "llama-tied"
    small = loss_and_grads(task(DECODERS[name], axes, accumulate))
    assert_close(small, alone(name), LAYOUT)


def test_the_gradients_are_those_of_plain_jax():
    config = DECODERS["llama"]
    model, data = Model(config), jax.tree.map(jax.numpy.asarray, batch())
    loss, _, params, grads = alone("llama")

    def mean(params):
        network = model.bind(params)
        out = network(data["inputs"], data["positions"], data["segments"])
        logp = jax.nn.log_softmax(network.unembed(out.hidden))
        nll = -jax.numpy.take_along_axis(logp, data["targets"][..., None], -1)[..., 0]
        return (nll * data["weights"]).sum() / data["weights"].sum()

    wanted_loss, wanted = jax.value_and_grad(mean)(params)
    assert_close((loss, grads), (float(wanted_loss), wanted), LAYOUT)
