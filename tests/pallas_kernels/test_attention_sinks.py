"""The gradient of attention sinks in bfloat16: a sum over all queries, in which roundings show."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import pytest
from attention_grid import Case, agree, frobenius, value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.pallas_kernels.attention import Mask
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.tpu_tiles import Tiles
from jscale.pallas_kernels.attention.triton import triton
from jscale.pallas_kernels.attention.triton_tiles import Tiles as TritonTiles
from jscale.pallas_kernels.attention.tuned import Sizes
from jscale.pallas_kernels.interpret import interpreted

SIXTEEN = TritonTiles(16, 16)
WAYS: dict[str, Any] = {
    "dense": "dense",
    "xla": "xla",
    "tpu": partial(flash, size=Tiles(16, 16)),
    "triton": partial(triton, size=Sizes(SIXTEEN, SIXTEEN, SIXTEEN)),
}
CASE = Case(0, 1, 20, 4, (2, 1), 8, 4, Mask(window=9), sinks=True, dtype="bfloat16")
MORE = replace(CASE, cap=1.5, slopes=True, segments=True)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", [CASE, pytest.param(MORE, marks=pytest.mark.slow)])
def test_it_is_as_exact_as_float32_although_results_are_rounded(name, case):
    inputs = case.inputs() | {"sinks": jnp.asarray([0.3, -1.2])}  # which stay float32
    exact = {key: x.astype(jnp.float32) for key, x in inputs.items()}
    with interpreted(memory=False):
        found = value_and_grads(lambda x: case.run(WAYS[name], x), inputs)[1]
    wanted = value_and_grads(lambda x: case.run("reference", x), exact)[1]
    assert frobenius(found["sinks"], wanted["sinks"]) <= 1e-5
    assert max(frobenius(found[key], wanted[key]) for key in "qkv") <= 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_it_is_near_for_any_numbers(name):
    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10_000), st.sampled_from([(1, 1), (2, 1), (4, 2)]))
    def held(seed, heads):
        with interpreted(memory=False):
            agree(replace(CASE, seed=seed, heads=heads), WAYS[name], 5e-3)

    held()
