"""Every test sees eight simulated CPU devices and one persistent compilation cache."""

import os
import tempfile
from pathlib import Path

os.environ["NPROC"] = "32"  # before any backend: few cores and many devices dead-lock without it

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")

# Programs compiled by one run of the tests serve the next one.
CACHE = Path(tempfile.gettempdir()) / f"jscale-test-programs-{os.getuid()}"
CACHE.mkdir(mode=0o700, exist_ok=True)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_report_header() -> str:
    from jscale.run.environment import (
        versions,  # here, so that its types are checked as it is loaded
    )

    return "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items())
