"""RetNet's claims of cost, measured small: a state and a time per token of one size at any length.

    python benchmarks/claims/retnet.py

Two things, for models of two layers of one width on the machine's CPU:

- decoding after prompts of 1,024 … 16,384 tokens, RetNet beside a Llama with a cache of keys and
  values: bytes of what is kept, and seconds of the processor (all threads) for a token.
- whole rows of 1,024 … 16,384 tokens, chunkwise beside parallel: bytes that the compiled program
  wants beside its inputs and results, and processor seconds. The parallel form is run up to 4,096
  tokens, and compiled up to the end.

Seconds are medians. Writes benchmarks/results/claims/retnet.json and a chart for each, and prints
the exponents p of cost ~ length^p, fitted on a logarithmic scale.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from keep import exponent, keep, machine

from jscale.models import Llama, Model, RetNet
from jscale.models.feed import GLU
from jscale.models.retnet import Chunkwise, Parallel
from jscale.models.retnet.forms import Form
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis

LENGTHS = (1024, 2048, 4096, 8192, 16384)
RUN = 4096  # tokens up to which the parallel form is run and not only compiled


def retnet(form: Form) -> Model:
    """The RetNet that is measured."""
    sizes = RetNet(256, 128, 256, 2, 2, GLU(256, "swish"))
    return Model(replace(sizes, form=form, remat="none"))


def llama() -> Model:
    """A Llama of the same width and depth."""
    return Model(Llama(vocab=256, dim=128, layers=2, heads=2, kv_heads=2, hidden=256, remat="none"))


def median(run: Callable[[], Any], times: int) -> float:
    """Processor seconds of a run."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        start = time.process_time()
        jax.block_until_ready(run())
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def reading(model: Model) -> Callable[..., Any]:
    """Scores of the last of some tokens at places, and the cache with them, as one program."""

    def read(params: Any, tokens: Any, places: Any, cache: Any) -> Any:
        network = model.bind(params)
        out = network(tokens, places, cache=cache)
        return network.unembed(out.hidden[:, -1:]), out.cache

    return jax.jit(read, donate_argnums=3)


def decoding(model: Model, lengths: tuple[int, ...], steps: int = 48) -> dict[str, list[float]]:
    """Bytes kept and seconds for a token, after a prompt of each length, read in pieces."""
    params, read = model.init(jax.random.key(0)), reading(model)
    found: dict[str, list[float]] = {"bytes": [], "seconds": []}
    for length in lengths:
        cache = model.bind(params).cache(1, length + steps + 1)
        piece = min(1024, length)
        tokens = jax.random.randint(jax.random.key(1), (1, piece), 0, 256)
        for start in range(0, length, piece):
            _, cache = read(params, tokens, start + jnp.arange(piece)[None], cache)
        found["bytes"].append(sum(x.nbytes for x in jax.tree.leaves(cache)))
        found["seconds"].append(_step(read, params, cache, length, steps))
    return found


def _step(read: Callable[..., Any], params: Any, cache: Any, length: int, steps: int) -> float:
    token, places = jnp.zeros((1, 1), jnp.int32), iter(range(length, length + steps + 1))
    holder = [cache]

    def step() -> Any:
        scores, holder[0] = read(params, token, jnp.full((1, 1), next(places)), holder[0])
        return scores

    return median(step, steps)


def rows(form: Form, lengths: tuple[int, ...], run: int, times: int = 5) -> dict[str, list[float]]:
    """Bytes beside inputs and results, and seconds up to `run` tokens, of whole rows."""
    model = retnet(form)
    params, found = model.init(jax.random.key(0)), {"bytes": [], "seconds": []}
    for length in lengths:
        tokens = jnp.zeros((1, length), jnp.int32)
        hidden = lambda params, tokens: model.bind(params)(tokens).hidden
        program = jax.jit(hidden).lower(params, tokens).compile()
        memory = program.memory_analysis()
        assert memory is not None
        found["bytes"].append(memory.temp_size_in_bytes)
        if length <= run:
            once = lambda program=program, tokens=tokens: program(params, tokens)
            found["seconds"].append(median(once, times))
    return found


def measure() -> dict[str, Any]:
    """All figures."""
    both = {"retnet": retnet(Chunkwise()), "llama": llama()}
    forms = {"chunkwise": (Chunkwise(), LENGTHS[-1]), "parallel": (Parallel(), RUN)}
    groups = {
        "decoding": {name: decoding(model, LENGTHS) for name, model in both.items()},
        "rows": {name: rows(form, LENGTHS, run) for name, (form, run) in forms.items()},
    }
    exponents = {
        f"{group}/{name}/{what}": round(exponent(LENGTHS, costs), 3)
        for group, members in groups.items()
        for name, found in members.items()
        for what, costs in found.items()
    }
    return {"machine": machine(), "lengths": LENGTHS, **groups, "exponents": exponents}


def charts(found: dict[str, Any]) -> dict[str, Chart]:
    """The pictures of them."""
    x, lengths = Axis("tokens"), found["lengths"]

    def chart(title: str, group: str, what: str, y: Axis) -> Chart:
        curves = [
            Series(name, lengths[: len(costs[what])], costs[what])
            for name, costs in found[group].items()
        ]
        return Chart(title, curves, x, y, scale="log")

    seconds, size = Axis("milliseconds", divide=1e-3), Axis("MB", divide=1e6)
    return {
        "retnet-decoding-seconds": chart("A token, after so many", "decoding", "seconds", seconds),
        "retnet-decoding-bytes": chart("Kept while decoding", "decoding", "bytes", size),
        "retnet-rows-seconds": chart("A row of so many tokens", "rows", "seconds", seconds),
        "retnet-rows-bytes": chart("Beside inputs and results", "rows", "bytes", size),
    }


def main() -> None:
    """Measure, write, print."""
    found = measure()
    keep("retnet", found, charts(found))
    for name, p in found["exponents"].items():
        print(f"{name}: length^{p}")


if __name__ == "__main__":
    main()
