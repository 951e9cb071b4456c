"""Host memory while a release is read into the shards of a mesh.

    python benchmarks/import_memory.py [--layers 12 24 48] [--keep]

Releases of Llama in bfloat16 are written to a temporary folder, and each is read by a process that
looks at its own anonymous memory (what it holds, not what the system keeps of files) every few
milliseconds. Devices are simulated, so that weights in place are host memory as well: `above` is
how far the peak is above them and above what the process held before, its compiled programs
included. Sizes are in MB. `--keep` writes benchmarks/results/import_memory.json.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "import_memory.json"
SHARD = 256 << 20
MB = 1 << 20


def config(layers: int) -> Any:
    """A Llama of 25 M weights a layer."""
    from jscale.models import Llama

    return Llama(32_000, 1536, layers, 12, 4, 4096, head=128)


def release(folder: Path, layers: int) -> int:
    """Write one of random numbers; the bytes of its largest array."""
    import jax
    import ml_dtypes
    import numpy as np

    from jscale.formats.files import write_files
    from jscale.formats.huggingface import files, table
    from jscale.models import Model

    sizes = config(layers)
    shapes = Model(sizes, store="bfloat16").shapes
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)
    draw, largest = np.random.default_rng(0), 0

    def fetch(lazy: Any) -> Any:
        nonlocal largest
        shape = lazy.fetch().shape
        largest = max(largest, 2 * math.prod(shape))
        return (0.02 * draw.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)

    write_files(table(sizes).lazily(zeros), folder, fetch, SHARD)
    (folder / "config.json").write_text(files(sizes, {"dtype": "bfloat16"})["config.json"])
    return largest


def anonymous() -> int:
    """Bytes of memory that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Memory before, at its peak and after, in MB, and seconds."""
    told: dict[str, float] = {"before": anonymous() / MB, "peak": 0.0}
    done, began = threading.Event(), time.perf_counter()

    def look() -> None:
        while not done.wait(0.003):
            told["peak"] = max(told["peak"], anonymous() / MB)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield told
    finally:
        done.set()
        thread.join()
    told |= {"after": anonymous() / MB, "seconds": time.perf_counter() - began}


def read(folder: str) -> dict[str, float]:
    """Read it, split over 8 devices."""
    import jax

    from jscale.mesh import MeshShape, simulate
    from jscale.pretrained import from_pretrained

    simulate(8)
    jax.block_until_ready(jax.numpy.zeros(8))
    with watched() as told:
        found = from_pretrained(folder, MeshShape(fsdp=8), store="bfloat16", compute="bfloat16")
        jax.block_until_ready(found.params)
    size = sum(w.nbytes for w in jax.tree.leaves(found.params)) / MB
    return {**told, "weights": size}


def one(folder: Path) -> dict[str, float]:
    """What reading takes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--read", str(folder)],
        # Freed memory goes back to the system at once, so that what is seen is what is held.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "above": found["peak"] - found["before"] - found["weights"]}


def measured(layers: int) -> dict[str, float]:
    """A release of so many layers, written and read."""
    with tempfile.TemporaryDirectory() as folder:
        largest = release(Path(folder), layers) / MB
        return {"layers": layers, "largest": largest, **one(Path(folder))}


def main() -> None:
    """Measure, print, and keep where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    import jax

    found = {
        "jax": jax.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "read": [measured(layers) for layers in options.layers],
    }
    print(json.dumps(found, indent=2))
    if options.keep:
        RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
