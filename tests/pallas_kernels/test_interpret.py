"""What interpretation shows of a kernel that is wrong: memory that nobody wrote, and races."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from attention_grid import watched
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.interpret import interpreted

SHAPE = jax.ShapeDtypeStruct((8, 128), jnp.float32)


@pytest.mark.parametrize("chip", ["tpu", "gpu"])
def test_what_a_kernel_does_not_write_is_not_a_number(chip):
    def half(x: Any, out: Any) -> None:
        out[:4] = x[:4]

    with interpreted():
        run = pl.pallas_call(half, out_shape=SHAPE, interpret=getattr(interpret, chip)())
        out = run(jnp.ones(SHAPE.shape))
    assert (out[:4] == 1).all() and jnp.isnan(out[4:]).all()


def copied(waits: bool) -> Any:
    """A copy in a kernel, read before it has arrived unless the kernel waits."""

    def kernel(x: Any, out: Any, buffer: Any, arrived: Any) -> None:
        copy = pltpu.make_async_copy(x, buffer, arrived)
        copy.start()
        if waits:
            copy.wait()
        out[...] = buffer[...]
        if not waits:
            copy.wait()

    run = pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=SHAPE,
        scratch_shapes=[pltpu.VMEM(SHAPE.shape, SHAPE.dtype), pltpu.SemaphoreType.DMA],
        interpret=interpret.tpu(),
    )
    return jax.block_until_ready(run(jnp.ones(SHAPE.shape)))


def test_a_copy_that_races_is_found():
    with watched():
        assert (copied(waits=True) == 1).all()
    with pytest.raises((AssertionError, RuntimeError), match="RACE|race"), watched():
        copied(waits=False)
