"""Simulated devices never dead-lock: the cure is applied before the backend starts."""

import os
import subprocess
import sys

PROGRAM = """
import os, sys
{first}
import jax
{configure}
from jscale.mesh import make_mesh
mesh = make_mesh(data=8)
assert int(os.environ["NPROC"]) >= 16, os.environ.get("NPROC")
from jax.sharding import NamedSharding, PartitionSpec as P
x = jax.device_put(jax.numpy.ones((8, 64)), NamedSharding(mesh, P("data")))
step = jax.jit(lambda x: x * 0 + x.sum() / 512, out_shardings=x.sharding)
for _ in range(200):
    x = step(x)  # dispatched without waiting: this is what hangs when threads are too few
print(float(x.sum()))
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("NPROC", "XLA_FLAGS")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_collectives_over_configured_devices_do_not_hang():
    done = run(PROGRAM.format(first="", configure="jax.config.update('jax_num_cpu_devices', 8)"))
    assert done.returncode == 0 and float(done.stdout) == 512.0, done.stderr


def test_collectives_over_forced_devices_do_not_hang_even_with_a_small_nproc():
    flags = "--xla_force_host_platform_device_count=8"
    done = run(PROGRAM.format(first="", configure=""), XLA_FLAGS=flags, NPROC="2")
    assert done.returncode == 0 and float(done.stdout) == 512.0, done.stderr


def test_simulate_and_its_error_when_it_comes_too_late():
    done = run(
        "import jax\nfrom jscale.mesh import simulate\nsimulate(4)\n"
        "assert len(jax.devices()) == 4\nsimulate(4)\nsimulate(8)"
    )
    assert done.returncode == 1 and "came too late" in done.stderr


def test_whether_a_backend_has_started_is_known_and_asking_changes_nothing():
    done = run(
        "import jax\nfrom jscale.mesh.compat import started\n"
        "print(started(), started(), jax.config.jax_num_cpu_devices)\n"
        "jax.config.update('jax_num_cpu_devices', 3)\nprint(started(), len(jax.devices()))\n"
        "print(started(), started(), jax.config.jax_num_cpu_devices)"
    )
    assert done.stdout.splitlines() == ["False False -1", "False 3", "True True 3"], done.stderr


def test_devices_started_on_too_few_threads_are_refused_before_they_hang():
    program = (
        "import jax\njax.config.update('jax_num_cpu_devices', 8)\njax.devices()\n"
        "from jscale.mesh import make_mesh\nmake_mesh(data=8)"
    )
    done = run(program, NPROC="2")
    assert done.returncode == 1 and "may hang" in done.stderr and "NPROC=32" in done.stderr
    assert run(program, NPROC="16").returncode == 0


def test_these_tests_run_with_enough_threads():
    assert int(os.environ["NPROC"]) >= 16
