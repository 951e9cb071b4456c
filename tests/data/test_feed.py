"""The feed: the stream's batches on the devices, whatever the layout, the start and the workers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jscale.data.corpus import Corpus, TextData
from jscale.data.feed import Feed, feed, feed_epoch
from jscale.data.tokenizers import Bytes
from jscale.errors import ConfigError, DataError

LAYOUTS = {
    "rows": PartitionSpec("data"),
    "rows and places": PartitionSpec("data", "context"),
    "both on rows": PartitionSpec(("data", "context")),
    "replicated": PartitionSpec(),
    "places": PartitionSpec(None, "context"),
}


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2)


def sharding_by(spec: PartitionSpec):
    return lambda name, shape: NamedSharding(mesh(), spec)


@pytest.fixture(scope="module")
def corpus(words, tmp_path_factory) -> Corpus:
    folder = str(tmp_path_factory.mktemp("cache"))
    return TextData(words, Bytes(), length=16, batch=8, heldout=0.1, cache=folder).open(0)


def check(batch: dict[str, jax.Array], expected: dict[str, np.ndarray]) -> None:
    assert set(batch) == set(expected)
    for name, values in expected.items():
        assert batch[name].dtype == values.dtype
        assert np.array_equal(batch[name], values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_arrive_in_any_layout_from_any_start(corpus, layout):
    sharding = sharding_by(LAYOUTS[layout])
    for start in (0, 1000):
        with feed(corpus.train, start, sharding) as batches:
            for k in range(start, start + 4):
                batch = next(batches)
                check(batch, corpus.train.global_batch(k))
                assert batch["inputs"].sharding == sharding("inputs", (8, 16))


def test_fields_may_lie_differently(corpus):
    specs = {"inputs": LAYOUTS["rows"], "weights": LAYOUTS["replicated"]}

    def sharding_of(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh(), specs.get(name, LAYOUTS["rows and places"]))

    with feed(corpus.train, 3, sharding_of, prefetch=1) as batches:
        check(next(batches), corpus.train.global_batch(3))


def test_an_evaluation_ends(corpus):
    stream = corpus.heldout
    assert stream is not None
    with feed_epoch(stream, sharding_by(LAYOUTS["rows"])) as batches:
        told = list(batches)
    assert len(told) == stream.epoch_batches() > 1
    for k, batch in enumerate(told):
        check(batch, stream.evaluation_batch(k))


class Rows:
    """A stream of another kind: what reinforcement learning would bring."""

    fingerprint = "rows"
    shapes = {
        "inputs": jax.ShapeDtypeStruct((8, 3), np.int32),
        "reward": jax.ShapeDtypeStruct((8,), np.float32),
    }

    def __init__(self) -> None:
        self.asked: set[tuple[int, int]] = set()

    def rows_of(self, k: int, start: int, stop: int) -> dict[str, np.ndarray]:
        self.asked.add((start, stop))
        if k == 3:
            raise DataError("batch 3 cannot be read")
        rows = np.arange(start, stop)
        inputs = np.repeat(rows[:, None], 3, 1).astype(np.int32)
        return {"inputs": inputs + k, "reward": rows.astype(np.float32)}


def test_only_the_rows_of_the_own_devices_are_read():
    stream = Rows()
    some = [jax.devices()[0], jax.devices()[5]]  # rows 2-4 and 6-8 of four shards are elsewhere
    few = jax.sharding.Mesh(np.array(some), ("data",), axis_types=(AxisType.Auto,))
    with feed(stream, 0, lambda name, shape: NamedSharding(few, PartitionSpec("data"))) as batches:
        check(next(batches), stream.rows_of(0, 0, 8))
    assert stream.asked == {(0, 8)}  # adjoining ranges are one


def test_an_error_while_reading_reaches_the_loop():
    with feed(Rows(), 1, sharding_by(LAYOUTS["rows"])) as batches:
        next(batches)
        next(batches)
        with pytest.raises(DataError, match="batch 3 cannot be read"):
            next(batches)


def test_closing_stops_the_threads(corpus):
    before = set(threading.enumerate())
    batches = feed(corpus.train, 0, sharding_by(LAYOUTS["rows"]))
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    assert list(batches) == []
    batches.close()


def test_wrong_settings_are_refused(corpus):
    rows = sharding_by(LAYOUTS["rows"])
    for start, prefetch, workers in ((-1, 2, 0), (0, 0, 0), (0, 2, -1)):
        with pytest.raises(ConfigError, match="feed: start="):
            feed(corpus.train, start, rows, prefetch=prefetch, workers=workers)
    odd = TextData(corpus.config.source, Bytes(), 16, 6, cache=corpus.config.cache).open(0)
    with pytest.raises(ConfigError, match="a batch cannot be divided over the mesh"):
        feed(odd.train, 0, rows)


def told_by(batches: Feed, count: int) -> list[np.ndarray]:
    with batches:
        return [np.asarray(next(batches)["inputs"]) for _ in range(count)]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_never_change_the_stream(corpus, workers):
    rows = sharding_by(LAYOUTS["rows"])
    told = told_by(feed(corpus.train, 5, rows, workers=workers), 9)
    assert all(
        np.array_equal(batch, corpus.train.global_batch(k)["inputs"])
        for k, batch in enumerate(told, 5)
    )


LOADER = """
import sys, jax
from jscale.data import Bytes, TextData, Texts, feed
if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    texts = Texts(tuple(f"document {i}" for i in range(50)))
    stream = TextData(texts, Bytes(), 8, 4, cache=sys.argv[1]).open(0).train
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = feed(stream, 0, lambda name, shape: one, workers=2)
    next(batches)
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
"""


def loader(tmp_path, what: str) -> subprocess.Popen:
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    command = [sys.executable, str(script), str(tmp_path / "cache"), what]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups")
@pytest.mark.parametrize("what", ["wait", "leave"])
def test_workers_do_not_outlive_their_parent(what, tmp_path):
    parent = loader(tmp_path, what)
    assert parent.stdout is not None and parent.stdin is not None
    assert parent.stdout.readline() == "ready\n"
    if what == "wait":
        parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=60)
    deadline = time.monotonic() + 20
    while alive(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(parent.pid)
    parent.stdin.close()
    parent.stdout.close()


HOST = """
import sys, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jscale.data import Bytes, TextData, Texts, feed
folder, port, host = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, host)
texts = Texts(tuple(f"document {i}" for i in range(50)))
stream = TextData(texts, Bytes(), 8, 8, cache=folder).open(0).train
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
with feed(stream, 7, lambda name, shape: rows) as batches:
    for k in range(7, 12):
        batch, expected = next(batches), stream.global_batch(k)
        for name, array in batch.items():
            assert array.shape == (8, 8) and len(array.addressable_shards) == 2
            for shard in array.addressable_shards:
                assert np.array_equal(shard.data, expected[name][shard.index])
print(host, flush=True)
"""


@pytest.mark.slow
def test_two_hosts_hold_one_batch_between_them(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(tmp_path), port, str(host)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    assert [host.communicate(timeout=120)[0] for host in hosts] == ["0\n", "1\n"]
