"""What jscale asks of JAX in another way than its documentation shows, so that one file follows it.

The supported versions are those of `pyproject.toml`; `docs/versions.md` says which were tested.
"""

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
