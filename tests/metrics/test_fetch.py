"""Pending: order, depth, and what it returns."""

import jax.numpy as jnp
import numpy as np
import pytest

from jscale.metrics import Pending


class Slow:
    """A number of which the test says when it has arrived."""

    def __init__(self, value, arrived=False):
        self.value, self.arrived = value, arrived

    def is_ready(self):
        return self.arrived

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)

    def __float__(self):
        return float(self.value)


def test_arrived_numbers_come_back_as_floats_in_order():
    pending = Pending()
    for step in (1, 2, 3):
        numbers = {"loss": jnp.float32(step) / 2, "rate": 0.5, "tokens": jnp.int32(7)}
        numbers["loss"].block_until_ready()
        pending.push(step, numbers)
    found = pending.ready()
    assert found == [(step, {"loss": step / 2, "rate": 0.5, "tokens": 7.0}) for step in (1, 2, 3)]
    assert {type(value) for _, numbers in found for value in numbers.values()} == {float}
    assert len(pending) == 0 and pending.ready() == [] and pending.drain() == []


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_waits_only_beyond_the_depth(depth):
    pending = Pending(depth)
    for step in range(8):
        pending.push(step, {"loss": Slow(step)})
    assert [step for step, _ in pending.ready()] == list(range(8 - depth))
    assert len(pending) == depth
    assert [step for step, _ in pending.drain()] == list(range(8 - depth, 8))


def test_a_later_step_never_overtakes_an_earlier_one():
    pending, first = Pending(depth=2), Slow(1.0)
    pending.push(1, {"loss": first})
    pending.push(2, {"loss": Slow(2.0, arrived=True)})
    assert pending.ready() == []
    first.arrived = True
    assert pending.ready() == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]


def test_a_step_has_arrived_when_all_of_its_numbers_have():
    pending = Pending()
    pending.push(1, {"a": Slow(1.0, arrived=True), "b": Slow(2.0)})
    assert pending.ready() == []
    assert pending.drain() == [(1, {"a": 1.0, "b": 2.0})]


def test_what_was_pushed_may_be_changed_afterwards():
    pending, numbers = Pending(), {"loss": jnp.float32(1.0)}
    pending.push(1, numbers)
    numbers.clear()
    assert pending.drain() == [(1, {"loss": 1.0})]
