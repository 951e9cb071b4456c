"""Attention's Mosaic-GPU kernels: interpreted, compiled for a Hopper GPU, and never chosen."""

import absent
import jax.numpy as jnp
import pytest
from attention_grid import Case, agree
from kernel_resources import plain, resources
from mosaic_cases import CASES, KERNELS, REFUSED, call, case, compiled

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import attention
from jscale.pallas_kernels.attention.choice import OPERATION, preferred
from jscale.pallas_kernels.attention.mosaic_gpu import mosaic_gpu, refuses
from jscale.pallas_kernels.attention.sinks import afterwards
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted

# JAX's interpreter runs warpgroups as threads, with barriers and copies, and knows no layouts.
SHORT = case(64, 0, 64, 64)


def agreed(it: Case) -> None:
    with interpreted():
        agree(it, afterwards(mosaic_gpu, widened=False), limit=1e-2)


def test_values_and_gradients():
    agreed(SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_values_and_gradients(name):
    agreed(CASES[name])


def test_it_compiles_for_a_gpu_that_is_not_here(request, record_property):
    if not absent.mosaic_compiles_for("h100:1", request):
        return
    needs = resources(compiled("mosaic_gpu", "h100:1", case(512, 0, 128, 128, heads=(4, 2))))
    record_property("resources", plain(needs))
    for kernel in KERNELS:
        # Of 384 threads; the warpgroups share out the processor's registers anew as they begin.
        assert needs[kernel]["registers"] == 168
        assert needs[kernel]["stack"] <= 64  # next to nothing is spilled


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_compile_for_a_gpu_that_is_not_here(name, request, record_property):
    if not absent.mosaic_compiles_for("h100:1", request):
        return
    needs = resources(compiled("mosaic_gpu", "h100:1", CASES[name]))
    record_property("resources", plain(needs))
    assert set(KERNELS) <= set(needs)


@pytest.mark.parametrize(
    "options, clause",
    [*REFUSED, (dict(), "made for Hopper only")],  # as the device here is none
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
