"""What jscale asks of JAX in another way than its documentation shows, so that one file follows it.

The supported versions are those of `pyproject.toml`; `docs/versions.md` says which were tested.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


def setting(name: str) -> Any:
    """The value of a JAX setting, by its whole name: "jax_compilation_cache_dir"."""
    return getattr(jax.config, name)  # settings are defined at run time, unseen by type checkers


def started() -> bool:
    """Whether JAX has already started a backend (after which devices cannot be changed).

    JAX has no public question for this, and its private one may move. It does promise to refuse
    another number of CPU devices from then on, so that is tried, and undone where it was taken.
    """
    count = setting("jax_num_cpu_devices")
    try:
        jax.config.update("jax_num_cpu_devices", count + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", count)
    return False


def coordination() -> Any:
    """The client of the job's coordination service: keys, values and barriers without a device.

    None where this process is alone. JAX shows it only through functions that run on devices, each
    of which has to be compiled.
    """
    from jax._src import distributed

    return distributed.global_state.client


@contextmanager
def uncached() -> Iterator[None]:
    """A block in which nothing is compiled from or into JAX's cache of programs.

    Programs for devices that are not there can be written to it and not read. JAX asks once a
    process whether there is a cache, so it is made to ask again.
    """
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    was = setting("jax_enable_compilation_cache")
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        reset_cache()
