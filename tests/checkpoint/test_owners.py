"""One run a folder: a second one is refused, a killed one leaves the folder free and whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint.states import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.lease import Lease
from jscale.checkpoint.store import Store
from jscale.checkpoint.verify import damage
from jscale.errors import CheckpointError
from jscale.run.runfolder import RunFolder, atomic_write

HOLDER = """
import sys
from pathlib import Path
from jscale.checkpoint.lease import Lease
lease = Lease(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `run`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize(
    "enter",
    [RunFolder, Lease, lambda path: Store(path, Checkpoints())],
    ids=["run", "lease", "store"],
)
def test_a_second_run_is_refused_by_name_and_a_killed_one_leaves_the_folder_free(
    tmp_path, holder, enter
):
    with pytest.raises(CheckpointError, match=f"is in use by process {holder.pid} on .* since"):
        enter(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "lock").read_text())["process"] == holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    enter(tmp_path / "run").close()


def test_a_second_run_in_the_same_process_is_refused_as_well(tmp_path):
    with RunFolder(tmp_path):
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}"):
            RunFolder(tmp_path)
    RunFolder(tmp_path).close()


def test_parts_of_a_run_lie_in_its_folder(tmp_path):
    with RunFolder(tmp_path / "runs" / "one") as run:
        parts = [run.recipe, run.environment, run.tokenizer, run.checkpoints, run.events]
        parts += [run.metrics, run.summary, run.samples]
        assert all(part.parent == run.path for part in parts)
        assert len({part.name for part in parts}) == 8


def test_a_folder_that_cannot_be_made_or_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="cannot be written: "):
        RunFolder(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written: "):
        RunFolder(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="cannot be written: "):
        Store(Path("/proc/jscale"), Checkpoints())
    assert (tmp_path / "file").read_text() == "kept"


def test_atomic_write_replaces_whole_files_and_says_why_it_cannot(tmp_path):
    path = tmp_path / "recipe.json"
    atomic_write(path, "one")
    atomic_write(path, "two")
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(
        CheckpointError, match="recipe.json/inner cannot be written: Not a directory"
    ):
        atomic_write(path / "inner", "three")
    assert path.read_text() == "two"


# Forks children that save steps 1, 2, 3, ... of arrays full of the step, and kills each after a
# while: forking from a warm parent makes a kill cost about a second rather than an import of JAX.
KILLED = """
import os, signal, sys, time
os.environ["NPROC"] = "32"
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jscale.checkpoint import Checkpoints
from jscale.checkpoint.store import Store
from orbax.checkpoint.experimental import v1

def save(folder):
    mesh = jax.make_mesh((4, 2), ("a", "b"), (AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("a", "b"))
    with Store(folder, Checkpoints(keep=2)) as store:
        for step in range(1, 10_000):
            value = {"w": jax.device_put(jnp.full((512, 512), step, jnp.float32), sharding)}
            store.save(step, value, {"position": step})
            store.wait()
            (folder / "acknowledged").write_text(str(step))

for delay in sys.argv[2:]:
    folder = Path(sys.argv[1]) / delay
    folder.mkdir()
    child = os.fork()
    if not child:
        save(folder)
        os._exit(1)
    while not (folder / "1").exists():
        time.sleep(0.005)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def kill_and_restore(tmp_path, delays):
    command = [sys.executable, "-c", KILLED, str(tmp_path), *map(str, delays)]
    subprocess.run(command, check=True, timeout=60 + 10 * len(delays), stderr=subprocess.DEVNULL)
    sharding = NamedSharding(make_mesh(2, 1), P("a"))
    for delay in delays:
        folder = tmp_path / str(delay)
        acknowledged = folder / "acknowledged"
        promised = int(acknowledged.read_text() or 0) if acknowledged.exists() else 0
        check_killed(folder, promised, sharding)


def check_killed(folder, promised, sharding):
    import jax

    like = {"w": jax.ShapeDtypeStruct((512, 512), np.float32, sharding=sharding)}
    with Store(folder, Checkpoints(keep=2)) as store:
        restored = store.restore(like)
        assert restored.step >= promised and restored.note == {"position": restored.step}
        assert restored.set_aside == () and np.all(restored.state["w"] == restored.step)
        assert all(not damage(folder, step) for step in store.steps())
        store.save(restored.step + 1, restored.state)  # a half written step is no obstacle
    left = {p.name for p in folder.iterdir()} - {"lock", "acknowledged"}
    assert left == {str(restored.step), str(restored.step + 1)}


def test_a_run_killed_at_any_moment_resumes_from_what_it_acknowledged(tmp_path):
    moments = np.random.default_rng(time.time_ns()).uniform(0, 0.4, 8).round(4)
    kill_and_restore(tmp_path, sorted(set(moments.tolist())))


@pytest.mark.slow
def test_a_run_killed_at_a_hundred_moments_resumes(tmp_path):
    moments = np.random.default_rng(time.time_ns()).uniform(0, 0.8, 100).round(4)
    kill_and_restore(tmp_path, sorted(set(moments.tolist())))
