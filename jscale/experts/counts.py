"""What experts had to do in a step: on the device as metrics, on the host by layer."""

# L layers of a stack, E experts.

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jscale.experts.layer import Layer
from jscale.models.load import PREFIX, Loads
from jscale.models.steered import map_named, named

BY_EXPERT = ("chosen", "mass")
FIELDS = ("chosen", "mass", "tokens", "log_sum", "margin", "highest", "dropped", "overflow")


def metrics(loads: Loads, corrections: PyTree[Array]) -> dict[str, Float[Array, "..."]]:
    """The loads as metrics of a step: numbers over all layers, and by layer arrays `load/…`.

    `moe_maxvio` is the mean over layers of the largest load over the mean load, less 1 (Wang et al.
    2024, arXiv 2408.15664), `moe_worst` the largest of them; `moe_dead` experts that nobody chose,
    `moe_dropped` the percentage of choices without a slot, `moe_overflow` how many had no room.
    """
    if not loads:
        return {}
    vio, dead = zip(*(_uneven(load.chosen) for load in loads.values()), strict=True)
    each = jnp.concatenate(vio)
    total = lambda name: sum(getattr(load, name).sum() for load in loads.values())
    share = 100 * total("dropped") / jnp.maximum(total("chosen"), 1.0)
    out = {
        "moe_maxvio": each.mean(),
        "moe_worst": each.max(),
        "moe_dead": jnp.stack(dead).sum(),
        "moe_dropped": share,
        "moe_overflow": jnp.asarray(total("overflow")),
    }
    return jax.tree.map(jax.lax.stop_gradient, {**out, **by_layer(loads, corrections)})


def by_layer(loads: Loads, corrections: PyTree[Array]) -> dict[str, Float[Array, "..."]]:
    """The arrays `load/…` that `layers` reads: those of the loads, and corrections of experts."""
    out: dict[str, Array] = {}
    for path, load in loads.items():
        out |= {f"{PREFIX}{path}/{name}": getattr(load, name) for name in FIELDS}
    jax.tree.leaves(map_named(lambda p, w: out.setdefault(PREFIX + named(p), w), corrections))
    return out


def _uneven(chosen: Float[Array, "*L E"]) -> tuple[Float[Array, " N"], Int[Array, ""]]:
    """By layer the largest load over the mean less 1, and how many experts nobody chose."""
    chosen = chosen.reshape(-1, chosen.shape[-1])
    mean = jnp.maximum(chosen.mean(-1), 1e-9)
    some = chosen.sum(-1, keepdims=True) > 0
    return jnp.where(some[:, 0], chosen.max(-1) / mean - 1, 0.0), ((chosen == 0) & some).sum()


def is_load(name: str) -> bool:
    """Whether this metric is of a layer of experts rather than a number."""
    return name.startswith(PREFIX)


def layers(values: Mapping[str, Any]) -> Iterator[Layer]:
    """The layers in the metrics of a step, in the order of their stacks."""
    paths = [n.removeprefix(PREFIX).rpartition("/")[0] for n in values if n.endswith("/chosen")]
    for path in dict.fromkeys(paths):
        found = {n: np.asarray(values[f"{PREFIX}{path}/{n}"], np.float64) for n in FIELDS}
        correction = values.get(f"{PREFIX}{path}/correction")
        stacked, experts = found["chosen"].ndim > 1, found["chosen"].shape[-1]
        rows = {n: a.reshape(-1, *[experts] * (n in BY_EXPERT)) for n, a in found.items()}
        none = np.zeros((len(rows["chosen"]), 0))
        own = none if correction is None else np.reshape(correction, (-1, experts))
        for at in range(len(own)):
            name = f"{path}/{at}" if stacked else path
            numbers = {n: float(rows[n][at]) for n in FIELDS if n not in BY_EXPERT}
            yield Layer(name, rows["chosen"][at], rows["mass"][at], **numbers, correction=own[at])
