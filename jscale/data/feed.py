"""From a stream to the devices: Grain reads ahead, each process loads only its devices' rows."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jscale.data.stream import Stream
from jscale.errors import ConfigError

ENDLESS = 1 << 40  # batches: Grain wants a length
AHEAD = 4  # batches that reading threads or a worker keep ready on the host

ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""The sharding of a batch's array, by its name and global shape."""


@runtime_checkable
class EvaluationStream(Stream, Protocol):
    """A stream that can also be read once from end to end."""

    def epoch_batches(self) -> int:
        """How many batches that takes."""
        ...

    def evaluation_rows_of(self, k: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows start to stop of evaluation batch k."""
        ...


def feed(
    stream: Stream, start: int, sharding_of: ShardingOf, *, prefetch: int = 2, workers: int = 0
) -> "Feed":
    """Batches start, start+1, .. of the stream on the devices, `prefetch` of them ahead, endlessly.

    `workers` processes read (0: threads of this process); their number never changes a batch. With
    workers the program's main module must guard its entry (`if __name__ == "__main__"`). Close the
    feed, or use it in a `with`, to stop its threads and workers.
    """
    if start < 0 or prefetch < 1 or workers < 0:
        raise ConfigError(
            f"feed: start={start} and workers={workers} must be 0 or more, prefetch={prefetch} 1"
        )
    batches = _Batches(stream.rows_of, start, ENDLESS, _row_ranges(stream, sharding_of))
    return Feed(_pipeline(stream, batches, sharding_of, prefetch, workers))


def feed_epoch(stream: EvaluationStream, sharding_of: ShardingOf, *, prefetch: int = 2) -> "Feed":
    """Every row of the stream once, on the devices; the last batch is filled with weight 0."""
    ranges = _row_ranges(stream, sharding_of)
    batches = _Batches(stream.evaluation_rows_of, 0, stream.epoch_batches(), ranges)
    return Feed(_pipeline(stream, batches, sharding_of, prefetch, 0))


class Feed(Iterator[dict[str, jax.Array]]):
    """An iterator of global batches that owns threads: close it."""

    def __init__(self, iterator: Any) -> None:
        """From a Grain iterator."""
        self._iterator = iterator

    def __next__(self) -> dict[str, jax.Array]:
        """The next global batch; raises what the reading of it raised."""
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def close(self) -> None:
        """Stop reading ahead; a closed feed is at its end."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Batches:
    """This process's rows of each batch, by index: Grain's random-access source."""

    read: Callable[[int, int, int], dict[str, np.ndarray]]
    start: int
    count: int
    ranges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        pieces = [self.read(self.start + int(index), a, b) for a, b in self.ranges]
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _row_ranges(stream: Stream, sharding_of: ShardingOf) -> tuple[tuple[int, int], ...]:
    """The rows that the devices of this process need, in the fewest ranges (often one)."""
    needed: set[tuple[int, int]] = set()
    for name, array in stream.shapes.items():
        try:
            indices = sharding_of(name, array.shape).addressable_devices_indices_map(array.shape)
        except ValueError as error:
            raise ConfigError(f"a batch cannot be divided over the mesh: {error}") from error
        needed |= {index[0].indices(array.shape[0])[:2] for index in indices.values() if index}
    merged: list[tuple[int, int]] = []
    for a, b in sorted(needed):
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return tuple(merged) or ((0, 0),)  # a process without a device of the mesh


def _pipeline(
    stream: Stream, batches: _Batches, sharding_of: ShardingOf, prefetch: int, workers: int
) -> Any:
    import grain  # a second of imports
    from grain.experimental import ThreadPrefetchIterDataset

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=AHEAD)
    dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
    if workers:
        _settle_flags()
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_start_worker)
    shardings = {name: sharding_of(name, array.shape) for name, array in stream.shapes.items()}
    shapes = {name: array.shape for name, array in stream.shapes.items()}

    def place(rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            name: _place(values, batches.ranges, shapes[name], shardings[name])
            for name, values in rows.items()
        }

    iterator = iter(ThreadPrefetchIterDataset(dataset.map(place), prefetch_buffer_size=prefetch))
    if workers:
        with _unheard():
            iterator.start_prefetch()
    return iterator


@contextmanager
def _unheard() -> Iterator[None]:
    """Threads and processes begun here never hear Ctrl-C or SIGTERM, not even while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _place(
    rows: np.ndarray,
    ranges: tuple[tuple[int, int], ...],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """The global array of which this process holds `rows`: those in `ranges`, end to end."""

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "asked only for devices of this process"
        first, last, _ = index[0].indices(shape[0])
        before = 0
        for a, b in ranges:
            if a <= first and last <= b:
                here = slice(before + first - a, before + last - a)
                return np.array(rows[(here, *index[1:])])  # a copy: workers reuse their memory
            before += b - a
        raise AssertionError(f"rows {first} to {last} were not loaded")

    return jax.make_array_from_callback(shape, sharding, shard, dtype=rows.dtype)


def _settle_flags() -> None:
    """Grain's workers read absl flags, which only programs started by absl.app have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    """In a worker: leave stopping to the parent, and do not outlive it.

    Signals to the whole process group (Ctrl-C, a scheduler's notice) are the parent's to answer: it
    may need a few more batches to reach the step at which it saves. Grain kills by SIGKILL.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
