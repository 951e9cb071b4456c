"""Log-probabilities of given tokens: what prediction, evaluation and preferences are made of."""

# R rows, S length, T = S - 1 targets, D model.

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.generate import UNKNOWN
from jscale.losses import token_logprobs
from jscale.mesh import Layout
from jscale.models.decoder import Answering
from jscale.models.model import Model, Params
from jscale.rows import PLACES, groups

Told = Callable[[int, int], None]
"""Told (rows done, rows in all) now and then."""


def tell_nobody(done: int, total: int) -> None:
    """The callback of those who do not want to be told."""


def of_tokens(
    network: Any, hidden: Float[Array, "R T D"], targets: Int[Array, "R T"]
) -> Float[Array, "R T"]:
    """The log-probability of each target given what was read up to its place."""
    return token_logprobs(network, hidden, targets)[0]


def of_the_likeliest(
    network: Any, hidden: Float[Array, "R T D"], targets: Int[Array, "R T"]
) -> Int[Array, "R T"]:
    """The likeliest token in each target's place; `UNKNOWN` where a logit is NaN."""
    logits = network.unembed(hidden)
    return jnp.where(jnp.isnan(logits.max(-1)), UNKNOWN, logits.argmax(-1))


def causal(model: Model, network: Any) -> Any:
    """The network, if it tells each token from those before it alone.

    Raises:
        ConfigError: it does not.
    """
    if isinstance(network, Answering) or not getattr(network, "causal", True):
        raise ConfigError(
            f"{type(model.config).__name__} gives no token a probability from those before it, as"
            " decoders do: on other networks there is the held-out loss, and no task"
        )
    return network


@lru_cache(maxsize=16)
def reader(model: Model, layout: Layout | None, found: Callable[..., Array]) -> Callable[..., Any]:
    """The jitted program that reads rows of tokens and says what is `found` for all but the first:
    `found(network, hidden, targets)`."""

    def run(params: Params, tokens: Int[Array, "R S"]) -> Array:
        with layout.active() if layout else nullcontext():
            network = causal(model, model.bind(params))
            return found(network, network(tokens[:, :-1]).hidden, tokens[:, 1:])

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
    program = reader(model, layout, of_tokens)
    return by_length(lambda tokens: program(params, tokens), rows, layout, places, tell)


def likeliest(
    model: Model,
    params: Params,
    rows: Sequence[Sequence[int]],
    layout: Layout | None = None,
    *,
    places: int = PLACES,
    tell: Told = tell_nobody,
) -> list[np.ndarray]:
    """For each row of tokens, the likeliest token at every place but the first, as `score`.

    `UNKNOWN` stands where the model's logits are not numbers.
    """
    program = reader(model, layout, of_the_likeliest)
    return by_length(lambda tokens: program(params, tokens), rows, layout, places, tell)


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
