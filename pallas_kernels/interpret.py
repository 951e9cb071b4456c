"""Kernels without their chip: run step by step by JAX, for tests and for understanding."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_interpreted: ContextVar[bool] = ContextVar("interpreted", default=False)


@contextmanager
def interpreted() -> Iterator[None]:
    """Run every kernel traced inside step by step, on any device.

    jit does not see it: trace inside, or a program traced outside is used again.
    """
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def active() -> bool:
    """Whether kernels are to be run step by step."""
    return _interpreted.get()


def tpu() -> Any:
    """What a TPU kernel's `pallas_call` takes as `interpret`.

    Interpreted, memory that nobody wrote holds NaN, and copies that race raise.
    """
    if not active():
        return False
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)


def gpu() -> bool:
    """What a GPU kernel's `pallas_call` takes as `interpret`; unwritten outputs hold NaN."""
    return active()
