"""How fast text becomes batches on a device, and what a training step would need of it.

    python benchmarks/data.py [--length 2048] [--batch 32] [--steps 200]

Builds the standard library's tokenizer and cache in a temporary folder, then feeds batches to the
first device. Prints one JSON object and keeps it in benchmarks/results/data.json: seconds to train
and tokenize, tokens/s of each stage, and the wait of a loop whose step takes `--step` seconds
(median and 99th percentile, in milliseconds).
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jscale.data import BytePairs, Bytes, StandardLibrary, Stream, TextData, Whole, feed
from jscale.run.environment import versions

RESULT = Path(__file__).parent / "results" / "data.json"


def measure_build(cache: str, length: int, batch: int) -> tuple[dict[str, float], Stream]:
    """Seconds of a first and of a later opening, and the stream."""
    data = TextData(StandardLibrary(), BytePairs(4096), length, batch, 0.05, cache=cache)
    seconds, last, phase = {}, time.perf_counter(), "reading"

    def progress(done: int, total: int, now: str) -> None:
        nonlocal last, phase
        if now != phase:
            seconds[phase] = time.perf_counter() - last
            last, phase = time.perf_counter(), now

    start = time.perf_counter()
    corpus = data.open(0, progress)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    data.open(0)
    (source,) = corpus.summary()["sources"]
    facts = {
        "text_megabytes": source["bytes"] / 1e6,
        "million_tokens": source["tokens"] / 1e6,
        "first_open_seconds": opened,
        "train_tokenizer_seconds": seconds.get("training the tokenizer", 0.0),
        "later_open_seconds": time.perf_counter() - start,
    }
    return facts, corpus.train


def measure_rows(stream: Stream, batch: int, steps: int) -> float:
    """Tokens a second of making batches in this thread."""
    start = time.perf_counter()
    for k in range(steps):
        places = stream.rows_of(k, 0, batch)["inputs"].size
    return steps * places / (time.perf_counter() - start)


def measure_feed(
    stream: Stream, steps: int, workers: int, step: float
) -> tuple[float, list[float]]:
    """Tokens a second on the device, and the waits of a loop that computes for `step` seconds."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    waits = []
    with feed(stream, 0, lambda name, shape: device, workers=workers) as batches:
        for _ in range(10):  # threads and workers start, buffers fill
            jax.block_until_ready(next(batches))
        start = time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            batch = jax.block_until_ready(next(batches))
            waits.append(time.perf_counter() - before)
            if step:
                time.sleep(step)
        seconds = time.perf_counter() - start
    return steps * batch["inputs"].size / seconds, waits


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step", type=float, default=0.05, help="seconds a step computes")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        facts, stream = measure_build(cache, options.length, options.batch)
        whole = TextData(
            StandardLibrary(), Bytes(), options.length, options.batch, packing=Whole(), cache=cache
        ).open(0)
        fastest, _ = measure_feed(stream, options.steps, options.workers, 0.0)
        paced = max(20, options.steps // 4)
        _, waits = measure_feed(stream, paced, options.workers, options.step)
        facts |= {
            "rows_tokens_per_second": measure_rows(stream, options.batch, options.steps),
            "whole_rows_tokens_per_second": measure_rows(whole.train, options.batch, 50),
            "feed_tokens_per_second": fastest,
            "step_needs_tokens_per_second": options.batch * options.length / options.step,
            "wait_median_ms": 1e3 * float(np.median(waits)),
            "wait_p99_ms": 1e3 * float(np.quantile(waits, 0.99)),
        }
    machine = {"platform": jax.default_backend(), "cores": os.cpu_count(), "versions": versions()}
    figures = {name: float(f"{x:.4g}") for name, x in facts.items()}
    text = json.dumps({**machine, **vars(options), **figures}, indent=1)
    print(text)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
