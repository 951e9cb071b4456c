"""Attention's Mosaic-GPU kernels: interpreted, compiled for a Hopper GPU, and never chosen."""

from typing import Any

import absent
import jax
import jax.numpy as jnp
import pytest
from attention_grid import Case, agree
from kernel_resources import plain, resources

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, attention
from jscale.pallas_kernels.attention.choice import OPERATION, Call, preferred
from jscale.pallas_kernels.attention.mosaic_gpu import mosaic_gpu, refuses
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted

KERNELS = "attention_forward", "attention_queries_backward", "attention_keys_backward"


def case(queries: int, more: int, head: int, value: int, mask: Mask = CAUSAL, **options: Any):
    whole: Any = dict(rows=1, heads=(1, 1), dtype="bfloat16") | options
    return Case(queries=queries, more=more, head=head, value=value, mask=mask, **whole)


# JAX's interpreter runs warpgroups as threads, with barriers and copies, and knows no layouts.
SHORT = case(64, 0, 64, 64)
CASES = {
    "edges": case(100, 30, 64, 64, Mask(window=70), heads=(2, 1), segments=True),
    "scores": case(200, 0, 64, 128, Mask(window=40, prefix=30), cap=1.5, slopes=True),
    "latent": case(70, 10, 192, 128, FULL),
    "places": case(70, 0, 64, 64, Mask(False, chunk=30), rows=2, positions=True, sinks=True),
    "large": case(140, 0, 256, 256, dtype="float16"),
}


def agreed(it: Case) -> None:
    with interpreted():
        agree(it, mosaic_gpu, limit=1e-2)


def test_values_and_gradients():
    agreed(SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_values_and_gradients(name):
    agreed(CASES[name])


def compiled(it: Case) -> Any:
    """The program of a case's gradients, for one H100."""

    def loss(inputs: Any) -> jax.Array:
        out, lse = it.run("mosaic_gpu", inputs)
        return out.astype(jnp.float32).sum() + lse.sum()

    return absent.compiled("h100:1", jax.grad(loss), jax.eval_shape(it.inputs))


def test_it_compiles_for_a_gpu_that_is_not_here(record_property):
    needs = resources(compiled(case(512, 0, 128, 128, heads=(4, 2))))
    record_property("resources", plain(needs))
    for kernel in KERNELS:
        # Of 384 threads; the warpgroups share out the processor's registers anew as they begin.
        assert needs[kernel]["registers"] == 168
        assert needs[kernel]["stack"] <= 64  # next to nothing is spilled


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_compile_for_a_gpu_that_is_not_here(name, record_property):
    needs = resources(compiled(CASES[name]))
    record_property("resources", plain(needs))
    assert set(KERNELS) <= set(needs)


def call(**options: Any) -> Call:
    sizes = dict(rows=2, queries=256, keys=256, heads=4, kv_heads=2, head=128, value=128)
    whole: Any = sizes | dict(dtype="bfloat16") | options
    return Call(**whole)


@pytest.mark.parametrize(
    "options, clause",
    [
        (dict(dtype="float32"), "bfloat16 and float16 only"),
        (dict(head=80), "a multiple of 64"),
        (dict(head=320), "up to 256"),
        (dict(value=32), "a multiple of 64"),
        (dict(bias=(1, 1, 256, 256)), "takes no bias"),
        (dict(keys=0), "needs a query and a key"),
        (dict(rows=70_000), "rows"),
        (dict(), "made for Hopper only"),  # as the device here is none
    ],
)
def test_what_is_refused(options, clause):
    assert clause in (refuses(call(**options)) or "")


def test_it_is_taken_by_name_only():
    found = OPERATION.implementations["mosaic_gpu"]
    assert not found.proven and found.kernel
    assert "mosaic_gpu" not in [name for name, _ in preferred(call(), Device("gpu", "NVIDIA H100"))]
    x = jnp.ones((1, 2, 1, 64), jnp.bfloat16)
    with pytest.raises(ConfigError, match="runs on gpu only"):
        attention(x, x, x, implementation="mosaic_gpu")
