"""xPos's claim: trained on short rows, it reads longer ones better than RoPE and ALiBi do.

    python benchmarks/claims/xpos.py

Three decoders that differ in their positions alone, with the same first weights and the same
batches: bytes of Python's standard library in rows of 64. Then held-out text in rows of up to 256:
the loss of all their tokens, of some seeds. xPos has the paper's blockwise causal attention, and
its base is half of the training length, as in the paper. Writes
benchmarks/results/claims/xpos.json and a chart.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from keep import keep, machine, tell
from training import Training, library, loss_of, of_text, windows

from jscale.models import Model, TransformerDecoder
from jscale.models.feed import MLP
from jscale.models.positions import Alibi, Position, Rope, XPos
from jscale.models.residual import PreNorm
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis

TRAINED = 64  # tokens of a row in training
LENGTHS = (32, 64, 96, 128, 192, 256)
POSITIONS: dict[str, Position] = {
    "xPos": XPos(base=TRAINED / 2, blockwise=TRAINED),
    "ALiBi": Alibi(),
    "RoPE": Rope(),
}
SIZES: dict[str, Any] = {"dim": 64, "layers": 2, "heads": 4, "feed": MLP(256)}
RATE, WARMUP, ROWS, STEPS, SEEDS = 2e-3, 50, 32, 800, (0, 1)
HELD_OUT = 400_000  # bytes at the end of the text


def decoder(position: Position) -> Model:
    """The decoder that knows where tokens stand in this way."""
    return Model(
        TransformerDecoder(
            **(SIZES | {"vocab": 256, "positions": (position,), "residual": PreNorm()}),
            init="paper",
            remat="none",
        )
    )


def losses(measure: Any, params: Any, text: Any, lengths: Sequence[int]) -> list[float]:
    """The mean loss of held-out rows of each length."""
    found = []
    for length in lengths:
        key = jax.random.key(7)
        several = [windows(text, 64, length, jax.random.fold_in(key, i)) for i in range(4)]
        found.append(float(np.mean([measure(params, batch) for batch in several])))
    return found


def extrapolate(steps: int = STEPS, seeds: Sequence[int] = SEEDS) -> dict[str, list[list[float]]]:
    """Of each way of knowing positions and each seed, the loss at each length."""
    text = library()
    seen, rest = text[:-HELD_OUT], jnp.asarray(text[-HELD_OUT:])
    found: dict[str, list[list[float]]] = {}
    for name, position in POSITIONS.items():
        model = decoder(position)
        measure = jax.jit(loss_of(model))
        training = Training(model, of_text(seen, ROWS, TRAINED), WARMUP, at_once=20)
        found[name] = []
        for seed in seeds:
            params = training.run(RATE, steps, seed, name).params
            found[name].append([round(x, 4) for x in losses(measure, params, rest, LENGTHS)])
            tell(f"{name}: losses at {LENGTHS}: {found[name][-1]}")
    return found


def charts(found: dict[str, Any]) -> dict[str, Chart]:
    """The picture of it: the mean over seeds."""
    curves = [
        Series(name, found["lengths"], np.mean(each, 0)) for name, each in found["losses"].items()
    ]
    title = f"Loss of held-out rows, after training on rows of {found['trained']}"
    return {"xpos": Chart(title, curves, Axis("bytes in a row"), Axis("nats for a byte"), "linear")}


def main() -> None:
    """Train, measure, write."""
    found = {
        "machine": machine(),
        "settings": {"updates": STEPS, "rows": ROWS, "rate": RATE, "seeds": len(SEEDS)},
        "trained": TRAINED,
        "lengths": LENGTHS,
        "losses": extrapolate(),
    }
    keep("xpos", found, charts(found))


if __name__ == "__main__":
    main()
