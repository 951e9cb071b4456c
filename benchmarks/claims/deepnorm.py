"""DeepNorm's claim: a Transformer of 1,000 layers trains, where norms after sums alone do not.

    python benchmarks/claims/deepnorm.py

Decoders of width 32, with DeepNorm and with the original post-LN, TorchScale's first weights:

- the gradient of each layer's last feed-forward matrix at 12, 100 and 1,000 layers, before any
  update: its norm at the first layer over that at the last, the median over seeds; and the
  processor seconds that the gradient's compilation takes.
- training at 1,000 layers, by Adam after a warm-up, each at several rates: every token is to be
  said again, all drawn evenly, so that what is learned must go through the layers. A network that
  learns nothing stays at the logarithm of the vocabulary.

Writes benchmarks/results/claims/deepnorm.json and charts.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from keep import keep, machine, tell
from training import Training, loss_of

from jscale.models import Model, TransformerDecoder
from jscale.models.feed import MLP
from jscale.models.positions import Rope
from jscale.models.residual import DeepNorm, PostNorm, Residual
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis

SCHEMES: dict[str, Residual] = {"DeepNorm": DeepNorm(), "post-LN": PostNorm()}
DEPTHS = (12, 100, 1000)
VOCAB, ROWS, LENGTH, SEEDS = 16, 8, 16, 5
RATES, WARMUP, STEPS = (1e-3, 1e-4), 10, 50


def decoder(layers: int, residual: Residual) -> Model:
    """The decoder of so many layers whose branches are added in this way."""
    sizes: dict[str, Any] = {"vocab": VOCAB, "dim": 32, "heads": 4, "feed": MLP(64)}
    sizes |= {"positions": (Rope(),), "remat": "none"}
    return Model(TransformerDecoder(layers=layers, residual=residual, **sizes))


def echo(key: Any) -> dict[str, Any]:
    """Random rows, whose targets are they themselves."""
    tokens = jax.random.randint(key, (ROWS, LENGTH), 0, VOCAB)
    return {"inputs": tokens, "targets": tokens, "weights": jnp.ones((ROWS, LENGTH))}


def gradients(model: Model, seeds: int) -> tuple[np.ndarray, float]:
    """Norms [seeds, layers] of the gradient of feed-forwards' last matrices, and the processor
    seconds that its compilation took."""
    params, found = jax.jit(model.init), []

    def norms(params: Any, batch: Any) -> Any:
        grads = jax.grad(loss_of(model))(params, batch)
        of = grads["tower"]["blocks"]["block"]["feed"]["down"]["kernel"]
        return jnp.sqrt(jnp.square(of).sum((1, 2)))

    example = model.shapes, jax.eval_shape(echo, jax.random.key(0))
    start = time.process_time()
    program = jax.jit(norms).lower(*example).compile()
    seconds = time.process_time() - start
    for seed in range(seeds):
        key = jax.random.key(seed)
        found.append(program(params(key), echo(jax.random.fold_in(key, 1))))
    return np.asarray(found), seconds


def flow(depths: Sequence[int], seeds: int = SEEDS) -> dict[str, list[dict[str, Any]]]:
    """Of each scheme and depth: norms by layer, first over last of each seed, compile seconds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, residual in SCHEMES.items():
        found[name] = []
        for layers in depths:
            norms, seconds = gradients(decoder(layers, residual), seeds)
            ratios = [float(f"{x:.3g}") for x in norms[:, 0] / norms[:, -1]]
            middle = [float(f"{x:.3g}") for x in np.median(norms, 0)]
            one = {"layers": layers, "ratios": ratios, "ratio": float(np.median(ratios))}
            found[name].append(one | {"compile_seconds": round(seconds, 1), "norms": middle})
            tell(f"{name}, {layers} layers: first over last {one['ratio']:.3g}, {seconds:.1f} s")
    return found


def train(layers: int, rates: Sequence[float], steps: int) -> dict[str, dict[str, list[float]]]:
    """Of each scheme and rate, the losses of updates."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, residual in SCHEMES.items():
        training = Training(decoder(layers, residual), echo, WARMUP, at_once=5)
        found[name] = {}
        for rate in rates:
            losses = training.run(rate, steps, 0, f"{name}, {layers} layers, rate {rate:g}").losses
            found[name][f"{rate:g}"] = [round(float(x), 4) for x in losses]
    return found


def last(losses: Sequence[float]) -> float | None:
    """The mean loss of the last ten updates; None where it is no number."""
    end = float(np.mean(losses[-10:]))
    return round(end, 4) if np.isfinite(end) else None


def charts(found: dict[str, Any]) -> dict[str, Chart]:
    """The pictures: gradients by layer at the greatest depth, and the best training of each."""
    flows = {name: depths[-1] for name, depths in found["flow"].items()}
    deep = next(iter(flows.values()))["layers"]
    norms = [Series(name, np.arange(1, deep + 1), depth["norms"]) for name, depth in flows.items()]
    curves = []
    for name, rates in found["training"].items():
        rate, losses = min(rates.items(), key=lambda pair: last(pair[1]) or np.inf)
        curves.append(Series(f"{name}, rate {rate}", np.arange(1, len(losses) + 1), losses))
    grads = Chart(f"Gradients of {deep:,} layers", norms, Axis("layer"), Axis("norm"), "log")
    updates = Axis("update")
    loss = Chart(f"Training {deep:,} layers", curves, updates, Axis("nats for a token"), "linear")
    return {"deepnorm-gradients": grads, "deepnorm-training": loss}


def main() -> None:
    """Measure, write."""
    found: dict[str, Any] = {
        "machine": machine(),
        "settings": {"vocabulary": VOCAB, "rows": ROWS, "length": LENGTH, "warmup": WARMUP},
        "guess": round(math.log(VOCAB), 4),
        "flow": flow(DEPTHS),
        "training": train(DEPTHS[-1], RATES, STEPS),
    }
    found["ends"] = {
        name: {rate: last(losses) for rate, losses in rates.items()}
        for name, rates in found["training"].items()
    }
    keep("deepnorm", found, charts(found))


if __name__ == "__main__":
    main()
