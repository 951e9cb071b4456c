"""Attention's kernels for Blackwell: interpreted, compiled for a B200, and never chosen."""

import absent
import jax.numpy as jnp
import pytest
from attention_grid import Case, agree
from jax.experimental.pallas import mosaic_gpu as plgpu
from kernel_resources import plain, resources
from mosaic_cases import CASES as SHARED
from mosaic_cases import KERNELS, REFUSED, call, case, compiled

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import FULL, attention
from jscale.pallas_kernels.attention.choice import OPERATION, preferred
from jscale.pallas_kernels.attention.mosaic_blackwell import refuses
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted

SHORT = case(40, 60, 64, 64)
CASES = SHARED | {
    "long": case(300, 20, 128, 128, FULL),  # more tiles than shared memory holds at a time
    "grown": case(64, 200, 64, 64, FULL, scale=1.0),  # maxima that grow, and sums scaled anew
}
knows_tensor_memory = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason="tensor memory is interpreted from JAX 0.12 on",
)


def agreed(it: Case) -> None:
    with interpreted():
        agree(it, "mosaic_blackwell", limit=1e-2)


# JAX's interpreter runs warpgroups as threads, and products and copies beside them: each access to
# shared or tensor memory that no barrier orders raises. It knows no layouts.
@knows_tensor_memory
def test_values_and_gradients():
    agreed(SHORT)


@knows_tensor_memory
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_values_and_gradients(name):
    agreed(CASES[name])


def test_it_compiles_for_a_gpu_that_is_not_here(request, record_property):
    if not absent.mosaic_compiles_for("b200:1", request):
        return
    needs = resources(compiled("mosaic_blackwell", "b200:1", case(512, 0, 128, 128, heads=(4, 2))))
    record_property("resources", plain(needs))
    for kernel in KERNELS:
        assert needs[kernel]["registers"] <= 255
        assert needs[kernel]["stack"] <= 64  # next to nothing is spilled


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_compile_for_a_gpu_that_is_not_here(name, request, record_property):
    if not absent.mosaic_compiles_for("b200:1", request):
        return
    needs = resources(compiled("mosaic_blackwell", "b200:1", CASES[name]))
    record_property("resources", plain(needs))
    for kernel in KERNELS:  # a cap and slopes at once take more than there are
        assert needs[kernel]["stack"] <= (1024 if name == "scores" else 64)


@pytest.mark.parametrize(
    "options, clause",
    [*REFUSED, (dict(), "made for Blackwell only")],  # as the device here is none
)
def test_what_is_refused(options, clause):
    assert clause in (refuses(call(**options)) or "")


def test_it_is_taken_by_name_only():
    found = OPERATION.implementations["mosaic_blackwell"]
    assert not found.proven and found.kernel
    chosen = [name for name, _ in preferred(call(), Device("gpu", "NVIDIA B200"))]
    assert "mosaic_blackwell" not in chosen
    x = jnp.ones((1, 2, 1, 64), jnp.bfloat16)
    with pytest.raises(ConfigError, match="runs on gpu only"):
        attention(x, x, x, implementation="mosaic_blackwell")
