"""Log-probabilities of given tokens: what prediction, evaluation and preferences are made of."""

# R rows, T length.

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.losses import token_logprobs
from jscale.mesh import Layout
from jscale.models.model import Model, Params
from jscale.rows import PLACES, groups

Told = Callable[[int, int], None]
"""Told (rows done, rows in all) now and then."""


def tell_nobody(done: int, total: int) -> None:
    """The callback of those who do not want to be told."""


@lru_cache(maxsize=8)
def scorer(model: Model, layout: Layout | None) -> Callable[..., Array]:
    """The jitted log-probability of each target given the inputs up to its place."""

    def run(
        params: Params, inputs: Int[Array, "R T"], targets: Int[Array, "R T"]
    ) -> Float[Array, "R T"]:
        with layout.active() if layout else nullcontext():
            network = model.bind(params)
            return token_logprobs(network, network(inputs).hidden, targets)[0]

    return jax.jit(run, out_shardings=layout.replicated() if layout else None)


@lru_cache(maxsize=8)
def chooser(model: Model, layout: Layout | None) -> Callable[..., Array]:
    """The jitted likeliest token after each place, given the inputs up to it."""

    def run(params: Params, inputs: Int[Array, "R T"]) -> Int[Array, "R T"]:
        with layout.active() if layout else nullcontext():
            network = model.bind(params)
            return network.unembed(network(inputs).hidden).argmax(-1)

    return jax.jit(run, out_shardings=layout.replicated() if layout else None)


def score(
    model: Model,
    params: Params,
    rows: Sequence[Sequence[int]],
    layout: Layout | None = None,
    *,
    places: int = PLACES,
    tell: Told = tell_nobody,
) -> list[np.ndarray]:
    """For each row of tokens, the log-probability of every token but the first, given those before.

    Rows may be of different lengths and of any number: they are read by length, in few shapes, each
    about `places` tokens at a time, so what a row is given does not depend on the others.

    Raises:
        ConfigError: a row of fewer than two tokens.
    """
    program = scorer(model, layout)
    compute = lambda tokens: program(params, tokens[:, :-1], tokens[:, 1:])
    return by_length(compute, rows, layout, places, tell)


def likeliest(
    model: Model,
    params: Params,
    rows: Sequence[Sequence[int]],
    layout: Layout | None = None,
    *,
    places: int = PLACES,
    tell: Told = tell_nobody,
) -> list[np.ndarray]:
    """For each row of tokens, the likeliest token at every place but the first, as `score`."""
    program = chooser(model, layout)
    return by_length(lambda tokens: program(params, tokens[:, :-1]), rows, layout, places, tell)


def by_length(
    compute: Callable[[np.ndarray], Array],
    rows: Sequence[Sequence[int]],
    layout: Layout | None,
    places: int,
    tell: Told,
) -> list[np.ndarray]:
    """What a program that takes (rows, width + 1) tokens gives for each row but its first token."""
    if any(len(row) < 2 for row in rows) or not rows:
        raise ConfigError("scoring needs rows of at least two tokens each")
    ways = layout.batch_ways if layout else 1
    context = layout.mesh.shape.get("context", 1) if layout else 1
    found: dict[int, np.ndarray] = {}
    for group in groups([len(row) - 1 for row in rows], ways, context, places):
        tokens = np.zeros((group.height, group.width + 1), np.int32)
        for place, number in zip(tokens, group.rows, strict=False):
            place[: len(rows[number])] = rows[number]
        out = np.asarray(compute(tokens))
        for values, number in zip(out, group.rows, strict=False):
            found[number] = values[: len(rows[number]) - 1]
        tell(len(found), len(rows))
    return [found[number] for number in range(len(rows))]
