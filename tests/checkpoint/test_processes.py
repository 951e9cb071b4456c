"""Several processes write one checkpoint together, and any other number of them reads it."""

import socket
import subprocess
import sys

import jax
import numpy as np
from checkpoint.states import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.fingerprint import fingerprint
from jscale.checkpoint.restore import restore
from jscale.checkpoint.store import Store
from jscale.checkpoint.verify import damage

WORKER = """
import os, sys
os.environ["NPROC"] = "32"
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_platforms", "cpu")
port, index, folder, action = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index), heartbeat_timeout_seconds=20)
import jax.numpy as jnp
import numpy as np
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jscale.checkpoint import Checkpoints
from jscale.checkpoint.fingerprint import fingerprint
from jscale.checkpoint.store import Store
from jscale.errors import CheckpointError

mesh = jax.make_mesh((2, 2), ("a", "b"), (AxisType.Auto,) * 2)
values = np.arange(64 * 128, dtype=np.float32).reshape(64, 128)

def place(values, *spec):
    return jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, P(*spec)), lambda index: values[index]
    )

def refused(call):
    try:
        call()
    except CheckpointError as error:
        return str(error)
    raise AssertionError("not refused")

with Store(Path(folder), Checkpoints(every=100, keep=1, minutes=1e-9)) as store:
    if action == "save":
        assert [step for step in range(1, 33) if store.due(step)] == [16, 32]
        for step in (1, 2):
            state = {"w": place(values * step, "a", "b"), "count": place(np.int32(step))}
            store.save(step, state, {"position": step})
        store.wait()
        assert "has a step 2 already" in refused(lambda: store.save(2, state))
        assert store.steps() == [2]
    else:
        like = {"w": place(values, "b"), "count": place(np.int32(0))}
        restored = store.restore(like)
        (aside,) = restored.set_aside
        assert (restored.step, aside.step, aside.path.name) == (2, 3, "3"), restored
        for shard in restored.state["w"].addressable_shards:
            np.testing.assert_array_equal(shard.data, (values * 2)[shard.index])
    print(sorted(fingerprint(state if action == "save" else restored.state).items()))
"""


def together(folder, action):
    """Runs two processes of two devices each and returns what each of them printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", WORKER, str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, str(i), str(folder), action], **pipes) for i in range(2)]
    try:
        told = [worker.communicate(timeout=60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0, 0], told
    return [out.splitlines()[-1] for out, _ in told]


def test_two_processes_save_one_reads_and_two_read_again_past_a_damaged_step(tmp_path):
    values = np.arange(64 * 128, dtype=np.float32).reshape(64, 128) * 2
    first, second = together(tmp_path, "save")
    assert first == second and not damage(tmp_path, 2)

    sharding = NamedSharding(make_mesh(2, 4), P("b", "a"))
    like = {
        "w": jax.ShapeDtypeStruct((64, 128), np.float32, sharding=sharding),
        "count": jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(sharding.mesh, P())),
    }
    alone = restore(tmp_path, like)
    np.testing.assert_array_equal(alone.state["w"], values)
    assert alone.note == {"position": 2} and first == f"{sorted(fingerprint(alone.state).items())}"

    with Store(tmp_path, Checkpoints()) as store:
        store.save(3, alone.state)
    largest = max((tmp_path / "3").rglob("*/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert together(tmp_path, "restore") == [first, first]
