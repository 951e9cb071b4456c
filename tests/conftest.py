"""Every test sees eight simulated CPU devices and one persistent compilation cache."""

import gc
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["NPROC"] = "32"  # before any backend: few cores and many devices dead-lock without it
os.environ["JSCALE_TILES"] = os.devnull  # no table of the developer's own; none can be written

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")

# Programs compiled by one run of the tests serve the next one. Workers side by side keep theirs
# apart: JAX does not write a file of its cache in one piece, and another would read half of it.
PARTS = "jscale-test-programs", str(os.getuid()), os.environ.get("PYTEST_XDIST_WORKER")
CACHE = Path(tempfile.gettempdir()) / "-".join(part for part in PARTS if part)
CACHE.mkdir(mode=0o700, exist_ok=True)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_report_header() -> str:
    from jscale.run.environment import (
        versions,  # here, so that its types are checked as it is loaded
    )

    return "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items())


# Programs of these rooms' tests run for moments, and compiling them well costs more than it saves:
# where ./test runs all, XLA optimises little there. Otherwise they are compiled as users' are.
QUICK = os.environ.get("JSCALE_TESTS_QUICK") == "1"
QUICK_ROOMS = frozenset(
    "data docs evaluation formats models pallas_kernels parity processes run train".split()
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if QUICK:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        quick = room in QUICK_ROOMS
        jax.config.update("jax_disable_most_optimizations", quick)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))  # for those it starts


# Linux gives a process some 65,000 mappings of memory and a program on CPU takes hundreds; one that
# is loaded from the cache when none is left crashes the process.
MAPPINGS, TESTS_BETWEEN_LOOKS = 20_000, 10
_tests_run = itertools.count(1)


@pytest.fixture(autouse=True)
def programs_leave_in_time() -> Iterator[None]:
    yield
    maps = Path("/proc/self/maps")
    if next(_tests_run) % TESTS_BETWEEN_LOOKS or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()
