"""Experts' claims: they learn more with as many active weights, and stay in use without a loss.

    python benchmarks/claims/experts.py

Decoders of width 64 on bytes of Python's standard library, by jscale's own train step:

- a dense one, and one whose layers have sixteen experts of which a token uses two, together with
  the router no larger than the dense feed-forward: held-out loss by updates, of some seeds;
- these experts with a correction that is steered after each step, and with nothing that asks for
  even use: the largest load over the mean, less 1 (maxvio), by updates;
- experts whose router has collapsed before the first update (corrections so large that every token
  goes to the same two), with steering and without it.

Writes benchmarks/results/claims/experts.json and charts.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from keep import keep, machine, tell
from training import library, windows

from jscale import train
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh
from jscale.models import Llama, Mixtral, Model
from jscale.models.gates import Balance, TopK
from jscale.models.sparse import Experts
from jscale.models.steered import map_named
from jscale.optim import AdamW, Cosine
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis

SIZES: dict[str, Any] = {"vocab": 256, "dim": 64, "layers": 2, "heads": 4, "kv_heads": 4}
DENSE, EXPERT, COUNT, CHOICES = 264, 128, 16, 2  # 264: a router's weights are in it as well
ROWS, LENGTH, STEPS, EVERY = 32, 128, 400, 20
PEAK, SEEDS, HELD_OUT, MEASURED = 3e-3, (1, 2), 400_000, 8
STEER, COLLAPSED = (
    0.01,
    2.0,
)  # of a correction: its step, and how far two experts are ahead at first


def experts(steer: float) -> Mixtral:
    """The decoder with experts, balanced by corrections alone, which move so far."""
    choice = TopK(CHOICES, "sigmoid", corrected=True)
    layer = Experts(COUNT, choice, EXPERT, balance=Balance(0.0, steer=steer))
    return Mixtral(**SIZES, hidden=EXPERT, experts=layer, rope=1e4, remat="none")


CONFIGS: dict[str, Any] = {
    "dense": Llama(**SIZES, hidden=DENSE, remat="none"),
    "experts, steered": experts(STEER),
    "experts, left alone": experts(0.0),
}


class Course(NamedTuple):
    """What a training came to, every so many updates: held-out loss, and maxvio where there is."""

    losses: list[float]
    maxvio: list[float]


def task_of(config: Any, steps: int) -> train.Task:
    """The training of a decoder."""
    model = Model(config)
    optimizer = AdamW(PEAK, Cosine(warmup=0.05))
    built = optimizer.build(model.learned(model.axes), model.learned(model.shapes), steps)
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    return train.Task(model, built, NextToken(), layout)


def collapsed(state: train.State) -> train.State:
    """The state with corrections by which all tokens choose the same experts."""

    def ahead(path: tuple[Any, ...], w: Any) -> Any:
        first = jnp.arange(COUNT) < CHOICES
        return jnp.where(first, COLLAPSED, 0.0) + w if path[-1] == "correction" else w

    return state._replace(params=map_named(ahead, state.params))


def course(
    config: Any, seed: int, steps: int, text: Any, name: str, begin: Any = lambda state: state
) -> Course:
    """Train, and measure on held-out text on the way."""
    of = task_of(config, steps)
    step, evaluate = train.make_step(of), train.make_evaluation(of)
    state = begin(train.init(of, jax.random.key(seed)))
    learn, held = text[:-HELD_OUT], text[-HELD_OUT:]
    batch = jax.jit(lambda key: windows(learn, ROWS, LENGTH, key))
    still = [windows(held, ROWS, LENGTH, jax.random.key(i)) for i in range(MEASURED)]
    found = Course([], [])
    for number in range(1, steps + 1):
        state, metrics = step(state, batch(jax.random.fold_in(jax.random.key(seed + 99), number)))
        if number == 1 or number % EVERY == 0:
            sums = [evaluate(state.params, rows).metrics["nll"] for rows in still]
            total, weight = np.sum(np.asarray(sums), 0)
            found.losses.append(round(float(total / weight), 4))
            found.maxvio.append(round(float(metrics.get("moe_maxvio", 0.0)), 3))
    tell(f"{name}, seed {seed}: held-out {found.losses[-1]}, maxvio {found.maxvio[-1]}")
    return found


def sweep(seeds: Sequence[int], steps: int = STEPS) -> dict[str, list[Course]]:
    """All trainings, by name, of each seed."""
    text = jnp.asarray(library())
    found = {
        name: [course(config, seed, steps, text, name) for seed in seeds]
        for name, config in CONFIGS.items()
    }
    for name, steer in (("collapsed, steered", STEER), ("collapsed, left alone", 0.0)):
        make = lambda seed, name=name, steer=steer: course(
            experts(steer), seed, steps, text, name, collapsed
        )
        found[name] = [make(seed) for seed in seeds]
    return found


def updates(steps: int) -> list[int]:
    """The updates after which there is a measurement."""
    return [n for n in range(1, steps + 1) if n == 1 or n % EVERY == 0]


def mean(courses: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    """The mean over seeds."""
    return np.mean([course[what] for course in courses], 0).tolist()


def charts(found: Mapping[str, Any]) -> dict[str, Chart]:
    """Pictures of the losses, of loads, and of the recovery."""
    at, courses = np.asarray(found["updates"], float), found["courses"]
    lines = lambda names, what: [Series(n, at[1:], mean(courses[n], what)[1:]) for n in names]
    where = Axis("updates")
    loss, load = Axis("nats for a byte, held out"), Axis("largest load over the mean, less 1")
    names = list(courses)
    return {
        "experts-loss": Chart("Held-out loss", lines(names[:2], "losses"), where, loss, "linear"),
        "experts-load": Chart("Load", lines(names[1:3], "maxvio"), where, load, "linear"),
        "experts-collapsed": Chart(
            "After a collapse", lines(names[3:], "maxvio"), where, load, "linear"
        ),
    }


def main() -> None:
    """Measure, write, print."""
    models = {name: Model(config) for name, config in CONFIGS.items()}
    courses = sweep(SEEDS)
    found: dict[str, Any] = {
        "machine": machine(),
        "settings": {"updates": STEPS, "rows": ROWS, "length": LENGTH, "seeds": len(SEEDS)},
        "weights": {name: {"all": m.size, "active": m.active} for name, m in models.items()},
        "updates": updates(STEPS),
        "courses": {name: [c._asdict() for c in each] for name, each in courses.items()},
    }
    keep("experts", found, charts(found))


if __name__ == "__main__":
    main()
