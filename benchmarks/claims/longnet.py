"""LongNet's claim of cost: dilated attention is linear in length, where dense is quadratic.

    python benchmarks/claims/longnet.py

One causal attention of 4 heads of 32 over rows of 1,024 … 16,384 tokens, forward: dilated with the
same patterns at every length, (64, 1), (256, 4), … (16384, 256), beside dense.

- floating-point operations and bytes read and written, as XLA counts them in the compiled program.
  Dense attention is counted with all scores at once: XLA counts the body of a loop over tiles once.
- processor seconds (all threads), medians: dense attention runs tile by tile, and skips what the
  mask hides, so it does half of the operations that are counted.

Writes benchmarks/results/claims/longnet.json and charts, and prints the exponents p of cost ~
length^p, fitted on a logarithmic scale.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from keep import exponent, keep, machine, tell

from jscale.pallas_kernels.attention import attention
from jscale.pallas_kernels.dilated_attention import dilated_attention
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis

LENGTHS = (1024, 2048, 4096, 8192, 16384)
HEADS, SIZE = 4, 32
PATTERNS = tuple((64 * 4**i, 4**i) for i in range(5))
Attend = Callable[..., Any]
COUNTED: dict[str, Attend] = {
    "dilated": partial(dilated_attention, patterns=PATTERNS),
    "dense": partial(attention, implementation="dense"),
}
TIMED: dict[str, Attend] = COUNTED | {"dense": attention}


def operations(attend: Attend, length: int) -> tuple[float, float]:
    """Floating-point operations, and bytes read and written, of the compiled program."""
    shape = jax.ShapeDtypeStruct((1, length, HEADS, SIZE), "float32")
    found = jax.jit(attend).lower(shape, shape, shape).compile().cost_analysis()
    assert found is not None
    return found["flops"], found["bytes accessed"]


def seconds(attend: Attend, length: int, times: int = 5) -> float:
    """Processor seconds of a run, the median."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, length, HEADS, SIZE)) for key in keys)
    run, found = jax.jit(attend), []
    jax.block_until_ready(run(q, k, v))
    for _ in range(times):
        start = time.process_time()
        jax.block_until_ready(run(q, k, v))
        found.append(time.process_time() - start)
    return float(np.median(found))


def count(lengths: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Operations and bytes of both at these lengths."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, attend in COUNTED.items():
        flops, touched = zip(*(operations(attend, length) for length in lengths), strict=True)
        found[name] = {"flops": list(flops), "bytes": list(touched)}
        tell(f"{name}: operations and bytes at {len(lengths)} lengths")
    return found


def exponents(lengths: Sequence[int], found: dict[str, Any]) -> dict[str, float]:
    """p of cost ~ length^p, of each and each cost."""
    return {
        f"{name}/{what}": round(exponent(lengths, values), 3)
        for name, costs in found.items()
        for what, values in costs.items()
    }


def charts(found: dict[str, Any]) -> dict[str, Chart]:
    """The pictures of them."""

    def chart(title: str, what: str, y: Axis) -> Chart:
        x = np.log2(found["lengths"])
        curves = [Series(n, x, c[what]) for n, c in found["costs"].items()]
        return Chart(title, curves, Axis("tokens, as a power of 2"), y, scale="log")

    flops = chart("Operations of an attention", "flops", Axis("GFLOP", divide=1e9))
    time = chart("Time of an attention", "seconds", Axis("milliseconds", divide=1e-3))
    return {"longnet-flops": flops, "longnet-seconds": time}


def main() -> None:
    """Measure, write, print."""
    costs = count(LENGTHS)
    for name, attend in TIMED.items():
        costs[name]["seconds"] = []
        for length in LENGTHS:
            costs[name]["seconds"].append(seconds(attend, length))
            tell(f"{name}, {length} tokens: {costs[name]['seconds'][-1]:.3g} s")
    found = {"machine": machine(), "lengths": LENGTHS, "patterns": PATTERNS, "costs": costs}
    found["exponents"] = exponents(LENGTHS, costs)
    keep("longnet", found, charts(found))
    for name, p in found["exponents"].items():
        print(f"{name}: length^{p}")


if __name__ == "__main__":
    main()
