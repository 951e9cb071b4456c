"""Compile-only devices: the compilers of accelerators, asked on a machine that has none.

`libtpu` compiles for any TPU, JAX's CUDA plugin for any GPU of which it is given a description;
neither needs a device or a driver. Both come with the extra `oracle`.
"""

import importlib
import os
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from jscale.errors import ConfigError
from jscale.mesh.compat import started
from jscale.mesh.devices import simulate, skip_absent, tpu_here
from jscale.mesh.machines import Chip, Gpu, Shape, Torus

EXTRA = "pip install 'jscale[oracle]'"
PLUGINS = ("cuda13", "cuda12")
# What libtpu asks the cloud about the machine that it runs on; without answers it complains.
NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def cpu_devices(count: int) -> list[Any]:
    """The first `count` simulated devices of this process.

    Raises:
        ConfigError: JAX has started with fewer.
    """
    if not started():
        simulate(count)
    present = jax.devices("cpu")
    if len(present) < count:
        raise ConfigError(
            f"JAX has started with {len(present)} CPU device(s), fewer than the {count} to compile"
            f" for: call jscale.simulate({count}) before anything asks JAX for a device"
        )
    return present[:count]


def tpu_devices(chip: Chip, build: Torus, shape: Shape, slices: int) -> list[Any]:
    """The devices of so many slices of a shape, in JAX's order.

    Raises:
        ConfigError: no libtpu, or another than JAX wants.
    """
    check_libtpu()
    if not tpu_here():
        for name, value in NOWHERE.items():
            os.environ.setdefault(name, value)
    # Its lock guards the chips of this machine, of which none is used.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    form = "x".join(map(str, shape))
    return _topology(
        "tpu",
        topology_name=f"{chip.name}:{form}",
        chip_config_name=build.config,
        chips_per_host_bounds=tuple(min(s, 2) for s in (*shape, 1)[:2]) + (1,),
        wrap=(*build.wrap(shape), False)[:3],
        num_slices=slices,
    )


def gpu_devices(chip: Chip, build: Gpu, each: int, nodes: int) -> list[Any]:
    """The devices of so many nodes of `each` GPUs, in JAX's order.

    Raises:
        ConfigError: no CUDA plugin, or another than JAX wants.
    """
    plugin = check_plugin()
    fit = max(1, build.domain // each)  # nodes that one switch joins
    joined = max(n for n in range(1, fit + 1) if nodes % n == 0)
    options = {
        "target_config": description(chip, build),
        "topology": f"{nodes // joined}x{joined}x{each}",
    }
    skip_absent()
    try:
        return _topology("cuda", **options)
    except NotImplementedError:  # JAX could not load the plugin for want of a GPU's libraries
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        importlib.import_module(f"jax_plugins.xla_{plugin}").initialize()
        return _topology("cuda", **options)


def _topology(platform: str, **options: Any) -> list[Any]:
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform=platform, **options).devices)


def description(chip: Chip, build: Gpu) -> str:
    """A GPU as XLA's compiler is told of it: the text form of its `GpuTargetConfigProto`."""
    major, minor = build.capability
    kind = "ACCELERATED_FEATURES" if build.accelerated else "NONE"
    facts = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": build.shared,
        "shared_memory_per_block_optin": build.shared - 1024,
        "threads_per_core_limit": 2048,
        "core_count": build.processors,
        "fpus_per_core": build.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": build.cache,
        "clock_rate_ghz": build.clock,
        "device_memory_size": chip.memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in facts.items())
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{"
        f" major: {major} minor: {minor} feature_extension: {kind} }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
        f'device_description_str: "NVIDIA {chip.kinds[0]}"\n'
    )


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_libtpu(version: Callable[[str], str | None] = installed) -> None:
    """See that the TPU compiler is the one that this JAX was made with.

    Raises:
        ConfigError: it is missing, or of another version.
    """
    found, wanted = version("libtpu"), pinned("libtpu")
    if found is None:
        raise ConfigError(f"compiling for TPUs needs libtpu: {EXTRA}")
    if wanted and not f"{found}.".startswith(f"{wanted}."):
        raise ConfigError(
            f"jax {jax.__version__} compiles with libtpu {wanted}, and {found} is installed:"
            f" pip install 'libtpu=={wanted}.*'"
        )


def check_plugin(version: Callable[[str], str | None] = installed) -> str:
    """The name of the CUDA plugin, seen to be of the version of JAX.

    Raises:
        ConfigError: there is none, or one of another version.
    """
    wanted = version("jaxlib")
    for name in PLUGINS:
        found = version(f"jax-{name}-plugin")
        if found == wanted:
            return name
        if found is not None:
            raise ConfigError(
                f"jaxlib {wanted} compiles with jax-{name}-plugin {wanted}, and {found} is"
                f" installed: pip install 'jax-{name}-plugin=={wanted}' 'jax-{name}-pjrt=={wanted}'"
            )
    raise ConfigError(f"compiling for GPUs needs JAX's CUDA plugin: {EXTRA}")


def pinned(package: str) -> str | None:
    """The version that jax pins in its extras, without the wildcard; None where it pins none."""
    for line in metadata.requires("jax") or ():
        if found := re.match(rf"{package}==([\d.]+?)(?:\.\*)?\s*(?:;|$)", line):
            return found[1]
    return None
