"""Attention's GPU kernels: interpreted against the reference, and compiled for GPUs not here."""

from functools import partial
from typing import Any

import absent
import jax
import jax.numpy as jnp
import pytest
from attention_grid import Case, agree, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_resources import plain, resources

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, FULL, Places, attention
from jscale.pallas_kernels.attention import Mask as Seen
from jscale.pallas_kernels.attention.choice import OPERATION, Call, preferred
from jscale.pallas_kernels.attention.triton import Sizes, triton
from jscale.pallas_kernels.attention.triton_tiles import Problem, Tiles, phases, visits
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted


def tiled(queries, keys):
    size = Tiles(queries, keys)
    return partial(triton, size=Sizes(size, size, size))


@settings(deadline=None, max_examples=3)
@given(cases())
def test_the_grid(case):
    with interpreted():
        agree(case, tiled(16, 16))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(cases(queries=st.integers(1, 90), head=st.sampled_from([5, 16, 24])))
def test_the_large_grid(case):
    with interpreted():
        agree(case, tiled(16, 32))


UGLY = {
    "all": Case(
        *(0, 2, 37, 9, (4, 2), 20, 5),
        mask=Seen(window=20, prefix=3),
        cap=1.5,
        bias=(False, True),
        slopes=True,
        sinks=True,
        segments=True,
    ),
    "low": Case(0, 1, 70, 0, (4, 1), 16, 16, dtype="bfloat16"),
}


@pytest.mark.parametrize("name", UGLY)
def test_ugly_shapes(name):
    with interpreted():
        agree(UGLY[name], tiled(16, 32))


@pytest.mark.parametrize("around", ["vmap", "remat", "scan"])
def test_under_transformations(around):
    case = Case(queries=20)
    run = tiled(16, 16)

    def wrapped(q, k, v, *rest):
        one = lambda q, k, v: run(q, k, v, *rest)
        if around == "vmap":
            return jax.tree.map(
                lambda x: x[1], jax.vmap(one)(*(jnp.stack([2 * x, x]) for x in (q, k, v)))
            )
        if around == "remat":
            return jax.checkpoint(one)(q, k, v)
        rows = tuple(x[None] for x in (q, k, v))
        return jax.tree.map(lambda x: x[0], jax.lax.scan(lambda c, x: (c, one(*x)), 0, rows)[1])

    with interpreted():
        agree(case, wrapped)


@pytest.mark.parametrize(
    "mask, row",
    [
        (CAUSAL, [0, 0, 2, 3]),  # of 16 queries from 32: two tiles are seen wholly, one in part
        (FULL, [0, 0, 4, 4]),
        (Seen(window=16), [1, 3, 3, 3]),
    ],
)
def test_only_what_is_seen_is_visited_and_only_edges_are_masked(mask, row):
    problem = Problem(1, 64, 64, 1, 1, 16, 16, mask, 1.0, None, False)
    found = visits(problem, Tiles(16, 16), Places())
    assert found[0, 2].tolist() == row
    assert phases(found)[1] == (mask != Seen(window=16))


def call(**options):
    sizes = dict(rows=2, queries=256, keys=256, heads=4, kv_heads=2, head=128, value=128)
    whole: Any = sizes | dict(dtype="bfloat16") | options
    return Call(**whole)


@pytest.mark.parametrize(
    "name, options, clause",
    [
        ("triton", dict(head=320), "heads of up to 256"),
        ("triton", dict(rows=65_536), "65535 heads"),
        ("triton", dict(dtype="float64"), "not float64"),
        ("cudnn", dict(dtype="float32"), "bfloat16 and float16"),
        ("cudnn", dict(lse=True), "no log-sum-exp"),
        ("cudnn", dict(head=20), "multiple of 8"),
        ("cudnn", dict(value=64), "values of their size"),
        ("cudnn", dict(mask=Seen(chunk=8)), "causal masks"),
        ("cudnn", dict(mask=Seen(False, 8)), "causal masks"),
        ("cudnn", dict(keys=300), "as many queries as keys"),
        ("cudnn", dict(cap=30.0), "takes no cap"),
        ("cudnn", dict(segments=True), "takes no segments"),
    ],
)
def test_what_is_refused(name, options, clause):
    where = Device("gpu", "NVIDIA H100")
    assert clause in OPERATION.implementations[name].obstacle(call(**options), where)


def test_what_is_tried_on_a_gpu():
    names = [name for name, _ in preferred(call(), Device("gpu", "NVIDIA H100"))]
    assert names[:2] == ["cudnn", "triton"]
    assert OPERATION.implementations["triton"].obstacle(call(), Device("gpu", "H100")) is None


@pytest.mark.parametrize("name", ["triton", "cudnn"])
def test_a_kernel_does_not_run_here(name):
    x = jnp.ones((1, 2, 1, 8))
    with pytest.raises(ConfigError, match="runs on gpu only"):
        attention(x, x, x, implementation=name)


def compiled(machine, case):
    """The program of a case's gradients, for one chip of a machine."""

    def loss(inputs):
        out, lse = case.run("triton", inputs)
        return out.astype(jnp.float32).sum() + lse.sum()

    return absent.compiled(machine, jax.grad(loss), jax.eval_shape(case.inputs))


WIDE = Case(0, 1, 256, 0, (4, 2), 128, 128, dtype="bfloat16")
OTHER = {
    "plain": WIDE,
    "float32": Case(0, 1, 256, 0, (4, 2), 64, 64),
    "latent": Case(0, 1, 300, 9, (4, 4), 192, 128, dtype="bfloat16"),
    "options": Case(
        *(0, 2, 200, 5, (4, 2), 80, 80, Seen(window=40, prefix=9)),
        cap=30.0,
        bias=(False, True),
        slopes=True,
        sinks=True,
        segments=True,
        positions=True,
        dtype="bfloat16",
    ),
}


# JAX 0.12 means to leave Triton for Mosaic-GPU; until we have such a kernel, this one must compile.
LEAVING = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")


@LEAVING
def test_it_compiles_for_a_gpu_that_is_not_here(record_property):
    needs = resources(compiled("h100:1", WIDE))
    record_property("resources", plain(needs))
    for kernel in ("attention_forward", "attention_queries_backward", "attention_keys_backward"):
        assert 0 < needs[kernel]["registers"] <= 255
        assert needs[kernel]["stack"] <= 64  # next to nothing is spilled
        assert 0 < needs[kernel]["shared"] <= 227 * 1024


@LEAVING
@pytest.mark.slow
@pytest.mark.parametrize("machine", ["h100:1", "b200:1"])
@pytest.mark.parametrize("name", OTHER)
def test_all_compile_for_gpus_that_are_not_here(machine, name, record_property):
    needs = plain(resources(compiled(machine, OTHER[name])))
    record_property("resources", needs)
    assert "attention_forward.registers" in needs
