"""Compilations are told, with what made them necessary."""

import jax
import jax.numpy as jnp
import pytest

from jscale.compiled import (
    Compiled,
    differences,
    memory_explained,
    out_of_memory,
    peak_memory,
)
from jscale.errors import DeviceMemoryError


def test_a_changed_batch_is_named_and_compiled_once():
    told = []
    function = Compiled(jax.jit(lambda state, batch: state + batch["x"].sum()), told.append)
    state = jnp.zeros(())
    for rows in (4, 4, 6, 4, 6):
        state = function(state, {"x": jnp.ones((rows, 2))})
    assert float(state) == 2 * (4 + 4 + 6 + 4 + 6)
    assert [c.changed for c in told] == [(), ("x: float32[4,2] became float32[6,2]",)]
    assert all(c.seconds > 0 and c.memory for c in told)


def test_differences_name_what_is_new_and_what_is_gone():
    x, y = jnp.zeros(2), jnp.zeros(3, jnp.int32)
    found = differences({"a": x, "b": y}, {"a": x.astype(jnp.int32), "c": y})
    assert found == (
        "a: float32[2] became int32[2]",
        "c: int32[3] is new",
        "b: int32[3] is gone",
    )


def test_memory_counts_arguments_and_results():
    program = jax.jit(lambda x: x * 2).lower(jnp.zeros((256, 256))).compile()
    assert (peak_memory(program) or 0) >= 2 * 256 * 256 * 4


def test_too_little_memory_is_a_sentence_that_says_what_helps():
    wide = jax.jit(lambda state, batch: (state, jnp.zeros(1 << 46) + batch["x"].sum()))
    told = []
    with pytest.raises(
        DeviceMemoryError, match=r"batch of x float32\[4,2\] \(.*emory.*data\.batch"
    ):
        Compiled(wide, told.append)(jnp.zeros(()), {"x": jnp.ones((4, 2))})
    assert DeviceMemoryError.status == 73 and len(told) == 1


def test_other_errors_of_jax_stay_what_they_are():
    message = "RESOURCE_EXHAUSTED: the queue is full"
    with pytest.raises(jax.errors.JaxRuntimeError, match="the queue is full"):
        with memory_explained({}):
            raise jax.errors.JaxRuntimeError(message)
    assert out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM"))
