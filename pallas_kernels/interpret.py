"""Kernels without their chip: run step by step by JAX, for tests and for understanding."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_interpreted: ContextVar[bool] = ContextVar("interpreted", default=False)
_memory: ContextVar[bool] = ContextVar("memory", default=True)


@contextmanager
def interpreted(memory: bool = True) -> Iterator[None]:
    """Run every kernel traced inside step by step, on any device.

    The memory of a TPU is played as well, by callbacks, which rematerialisation does not take:
    `memory=False` leaves that out. jit does not see it: trace inside, or a program traced outside
    is used again.
    """
    tokens = _interpreted.set(True), _memory.set(memory)
    try:
        yield
    finally:
        _interpreted.reset(tokens[0])
        _memory.reset(tokens[1])


def active() -> bool:
    """Whether kernels are to be run step by step."""
    return _interpreted.get()


def tpu() -> Any:
    """What a TPU kernel's `pallas_call` takes as `interpret`.

    Interpreted, memory that nobody wrote holds NaN, and copies that race raise; before JAX 0.12
    that is only printed.
    """
    if not active() or not _memory.get():
        return active()
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)


def tpu_parameters(*semantics: Any, **more: Any) -> Any:
    """What a TPU kernel's `pallas_call` takes as `compiler_params`: "parallel" or "arbitrary" for
    each axis of its grid, and more; interpreted, axes would have to be told of those of vmap too.
    """
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.CompilerParams(dimension_semantics=None if active() else semantics, **more)


def gpu() -> bool:
    """What a GPU kernel's `pallas_call` takes as `interpret`; unwritten outputs hold NaN."""
    return active()


def mosaic_gpu() -> Any:
    """What a Mosaic-GPU kernel takes as `interpret`; unwritten memory holds NaN.

    From JAX 0.12 on accesses that race raise, of all memories and of what the tensor cores do.
    """
    if not active():
        return False
    from jax._src.pallas.mosaic_gpu.interpret import params  # public from JAX 0.12 on
    from jax.experimental.pallas import mosaic_gpu as plgpu

    races = hasattr(plgpu, "InterpretGPUParams")
    return params.InterpretGPUParams(uninitialized_memory="nan", detect_races=races)
