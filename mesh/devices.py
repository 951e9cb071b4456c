"""The devices of this process, and the cure for a dead-lock of simulated ones.

XLA runs every CPU device of a process on one pool of threads, sized by the number of cores. When a
program has more devices than the pool has threads to spare, a collective waits for a participant
that can never be scheduled, and XLA aborts. `NPROC` sets the size of the pool and is read when the
backend starts; twice the number of devices is enough, and only then is it worth its cost.
"""

import importlib.util
import os
import pkgutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jscale.errors import ConfigError
from jscale.mesh.compat import setting, started


def simulated() -> int:
    """How many CPU devices this process is configured to show."""
    configured = setting("jax_num_cpu_devices") or 0
    flags = os.environ.get("XLA_FLAGS", "").split()
    forced = [f.split("=")[1] for f in flags if "xla_force_host_platform_device_count=" in f]
    return max(configured, *(int(n) for n in forced), 1)


def threads() -> int:
    """How many threads XLA gives its CPU pool, or did when it started."""
    asked = os.environ.get("NPROC", "")
    return int(asked) if asked.isdigit() else os.cpu_count() or 1


def prevent_deadlock() -> None:
    """Give XLA's CPU pool enough threads for the simulated devices; harmless without any.

    Raises:
        ConfigError: it has started with too few.
    """
    count = simulated()
    if count == 1 or threads() >= 2 * count:
        return
    if started():
        raise ConfigError(
            f"JAX has started {count} simulated devices on {threads()} threads, on which programs"
            f" with collectives may hang: call jscale.simulate({count}) before anything asks JAX"
            f" for a device, or set NPROC={max(32, 2 * count)} before Python starts"
        )
    os.environ["NPROC"] = str(max(32, 2 * count))


def simulate(devices: int) -> None:
    """Make this process show `devices` CPU devices: a small mesh without an accelerator.

    Call it before anything asks JAX for a device.

    Raises:
        ConfigError: a backend has already started with another number of devices.
    """
    if started():
        if len(jax.devices()) == devices:
            return
        raise ConfigError(
            f"simulate({devices}) came too late: JAX has already started with"
            f" {len(jax.devices())} device(s); call it first, before any array is made"
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    prevent_deadlock()


def devices() -> list[Any]:
    """All devices of the job, the backend started safely if it had not been."""
    skip_absent()
    prevent_deadlock()
    return jax.devices()


def skip_absent() -> None:
    """Leave out accelerators of which only the compiler is here, no device.

    JAX would try them, and print screens of why they cannot start. Whatever the user has chosen
    stands, and so does everything where any other kind of accelerator is installed.
    """
    if setting("jax_platforms") or "JAX_FORCE_TPU_INIT" in os.environ or started():
        return
    installed = plugins()
    known = {"libtpu", "xla_cuda12", "xla_cuda13"}
    if installed and installed <= known and not (tpu_here() or gpu_here()):
        jax.config.update("jax_platforms", "cpu")


def plugins() -> set[str]:
    """The accelerators that JAX would find installed, as the last part of their module's name."""
    found = {point.value.split(".")[-1] for point in metadata.entry_points(group="jax_plugins")}
    folder = importlib.util.find_spec("jax_plugins")
    places = folder.submodule_search_locations if folder else None
    found |= {module.name for module in pkgutil.iter_modules(places or ())}
    return found | ({"libtpu"} if importlib.util.find_spec("libtpu") else set())


def tpu_here() -> bool:
    """Whether a TPU is plugged into this machine: a PCI device of Google's."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)


def gpu_here() -> bool:
    """Whether an NVIDIA driver shows a GPU to this machine; /dev/dxg is that of Windows' Linux."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvidiactl", "dxg"))
