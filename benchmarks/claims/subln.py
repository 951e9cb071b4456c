"""Sub-LN's claim: it trains at larger learning rates than pre-LN.

    python benchmarks/claims/subln.py

Decoders of width 32 with Sub-LN and with pre-LN, the paper's first weights, on deepnorm.py's task
of saying every token again:

- one update of the layers' weights at 12, 100 and 1,000 layers: how far the hidden states before
  the head move, over the rate. The update is SGD's, of which the paper's theory is, and Adam's.
- training of 100 layers by Adam without warm-up, at rates that double: rates of the layers alone,
  where embeddings, the last norm and the head learn at 0.001, and rates of all weights. A rate is
  taken if the mean loss of the last tenth of the updates is no more than halfway between guessing
  and the best median over seeds that either scheme comes to.

Writes benchmarks/results/claims/subln.json and charts.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent))

from deepnorm import VOCAB, echo
from keep import keep, machine, tell
from training import loss_of

from jscale.models import Model, TransformerDecoder
from jscale.models.feed import MLP
from jscale.models.positions import Rope
from jscale.models.residual import PreNorm, Residual, SubLN
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis

SCHEMES: dict[str, Residual] = {"Sub-LN": SubLN(), "pre-LN": PreNorm()}
DEPTHS = (12, 100, 1000)  # layers of one update
SMALL = {"SGD": 1e-4, "Adam": 1e-5}  # its rate
LAYERS, STEPS, AT_ONCE = 100, 60, 10
RATES = tuple(1e-3 * 2.0**i for i in range(1, 7))
SEEDS, FEWER = (11, 12, 13, 14, 15), (11, 12, 13)  # others than those that chose the setting
REST = 1e-3  # the rate of what is no layer
Ends = list[list[float | None]]  # of each seed, the last loss at each rate


def decoder(layers: int, residual: Residual) -> Model:
    """The decoder of so many layers whose branches are added in this way."""
    sizes: dict[str, Any] = {"vocab": VOCAB, "dim": 32, "heads": 4, "feed": MLP(64)}
    sizes |= {"positions": (Rope(),), "init": "paper", "remat": "none"}
    return Model(TransformerDecoder(layers=layers, residual=residual, **sizes))


def of_layers(params: Any, new: Callable[[Any], Any], rest: Callable[[Any], Any]) -> Any:
    """Two functions of leaves: one for the layers' weights, one for all others."""
    found = jax.tree.map(rest, params)
    found["tower"]["blocks"] = jax.tree.map(new, params["tower"]["blocks"])
    return found


def moved(model: Model) -> Callable[[Any, Any], dict[str, Any]]:
    """How far hidden states move at one small update of the layers, over the rate."""

    def move(params: Any, batch: Any) -> dict[str, Any]:
        grads = jax.grad(loss_of(model))(params, batch)
        hidden = lambda params: model(params, batch["inputs"]).hidden
        found, began = {}, hidden(params)
        steps = {"SGD": lambda g: g, "Adam": lambda g: g / (jnp.abs(g) + 1e-8)}
        for name, step in steps.items():
            rate = SMALL[name]
            new = lambda g, step=step, rate=rate: -rate * step(g)
            far = hidden(optax.apply_updates(params, of_layers(grads, new, jnp.zeros_like))) - began
            found[name] = jnp.sqrt(jnp.square(far).sum(-1).mean()) / rate
        return found

    return jax.jit(move)


def moves(depths: Sequence[int], seeds: Sequence[int]) -> dict[str, dict[str, list[list[float]]]]:
    """Of each scheme and optimiser, at each depth, how far each seed's hidden states move."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name, residual in SCHEMES.items():
        found[name] = {"SGD": [], "Adam": []}
        for layers in depths:
            model = decoder(layers, residual)
            params, move = jax.jit(model.init), moved(model)
            each = [
                move(params(key), echo(jax.random.fold_in(key, 1)))
                for key in map(jax.random.key, seeds)
            ]
            for optimiser, kept in found[name].items():
                kept.append([float(f"{one[optimiser]:.3g}") for one in each])
                tell(f"{name}, {layers} layers, {optimiser}: {np.median(kept[-1]):.3g}")
    return found


def trainer(model: Model, rates: Sequence[float], rest: float | None) -> Callable[..., Any]:
    """Some updates by Adam, at all rates at once; what is no layer learns at `rest`, if given."""
    adam, gradient = optax.scale_by_adam(), jax.value_and_grad(loss_of(model))

    def one(params: Any, moments: Any, rate: Any, batch: Any) -> tuple[Any, Any]:
        loss, grads = gradient(params, batch)
        updates, moments = adam.update(grads, moments)
        other = rate if rest is None else rest
        updates = of_layers(updates, lambda u: -rate * u, lambda u: -other * u)
        return (optax.apply_updates(params, updates), moments), loss

    @jax.jit
    def some(state: Any, key: Any, first: Any) -> tuple[Any, Any]:
        def update(state: Any, step: Any) -> tuple[Any, Any]:
            batch = echo(jax.random.fold_in(key, step))
            params, moments = state
            return jax.vmap(one, (0, 0, 0, None))(params, moments, jnp.asarray(rates), batch)

        return jax.lax.scan(update, state, first + jnp.arange(AT_ONCE))

    return some


def sweep(
    rates: Sequence[float], seeds: Sequence[int], rest: float | None, steps: int = STEPS
) -> dict[str, Ends]:
    """Of each scheme and seed the last loss at each rate; None where it is no number."""
    found: dict[str, Ends] = {}
    for name, residual in SCHEMES.items():
        model = decoder(LAYERS, residual)
        init, some, found[name] = jax.jit(model.init), trainer(model, rates, rest), []
        for seed in seeds:
            params = init(jax.random.key(seed))
            params = jax.tree.map(lambda w: jnp.broadcast_to(w, (len(rates), *w.shape)), params)
            state, losses = (params, jax.vmap(optax.scale_by_adam().init)(params)), []
            for first in range(0, steps, AT_ONCE):
                state, more = some(state, jax.random.key(seed + 1000), jnp.int32(first))
                losses += np.asarray(more).tolist()
            found[name].append(last(losses))
            tell(f"{name}, seed {seed}: {found[name][-1]}")
    return found


def last(losses: Sequence[Sequence[float]]) -> list[float | None]:
    """At each rate the mean loss of the last tenth of updates; None where it is no number."""
    ends = np.mean(losses[-max(1, len(losses) // 10) :], 0).tolist()
    return [round(end, 4) if np.isfinite(end) else None for end in ends]


def middle(ends: Ends) -> list[float]:
    """The median over seeds at each rate; what is no number is larger than any."""
    return np.median([[math.inf if x is None else x for x in seed] for seed in ends], 0).tolist()


def bound_of(ends: Mapping[str, Ends]) -> float:
    """Halfway between guessing and the best median of any scheme."""
    return (math.log(VOCAB) + min(min(middle(each)) for each in ends.values())) / 2


def largest(rates: Sequence[float], ends: Sequence[float | None], bound: float) -> float:
    """The largest rate whose loss is no more than a bound; 0 for none."""
    pairs = zip(rates, ends, strict=True)
    return max((rate for rate, end in pairs if end is not None and end <= bound), default=0.0)


def verdict(rates: Sequence[float], ends: Mapping[str, Ends]) -> dict[str, Any]:
    """The losses, their bound, and each scheme's largest rates: of the median and of each seed."""
    bound = bound_of(ends)
    of = lambda each: {
        "median": largest(rates, middle(each), bound),
        "seeds": [largest(rates, seed, bound) for seed in each],
    }
    best = {name: of(each) for name, each in ends.items()}
    return {"ends": ends, "bound": round(bound, 4), "largest": best}


def charts(found: Mapping[str, Any]) -> dict[str, Chart]:
    """The picture: the median of last losses at each rate of the layers."""
    rates, ends = np.log2(np.asarray(found["rates"]) / 1e-3), found["layers"]["ends"]
    curves = [Series(name, rates, middle(each)) for name, each in ends.items()]
    where = Axis("rate of the layers, as a power of 2 times 0.001")
    title = f"Loss after {found['settings']['updates']} updates at each rate"
    return {"subln": Chart(title, curves, where, Axis("nats for a token"), "linear")}


def main() -> None:
    """Measure, write, print."""
    settings = {"vocabulary": VOCAB, "layers": LAYERS, "updates": STEPS, "rest": REST}
    found: dict[str, Any] = {
        "machine": machine(),
        "settings": settings,
        "guess": round(math.log(VOCAB), 4),
        "depths": DEPTHS,
        "moves": moves(DEPTHS, SEEDS),
        "rates": RATES,
        "layers": verdict(RATES, sweep(RATES, SEEDS, REST)),
        "all": verdict(RATES, sweep(RATES, FEWER, None)),
    }
    keep("subln", found, charts(found))
    print(*(f"{what}: {found[what]['largest']}" for what in ("layers", "all")), sep="\n")


if __name__ == "__main__":
    main()
