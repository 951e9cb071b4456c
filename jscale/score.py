"""Log-probabilities of given tokens: what prediction, evaluation and preferences are made of."""

# R rows, T length.

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.losses import logprobs
from jscale.mesh import Layout
from jscale.models.model import Model, Params


@lru_cache(maxsize=8)
def scorer(model: Model, layout: Layout | None) -> Callable[..., Array]:
    """The jitted log-probability of each target given the inputs up to its place."""

    def run(
        params: Params, inputs: Int[Array, "R T"], targets: Int[Array, "R T"]
    ) -> Float[Array, "R T"]:
        with layout.active() if layout else nullcontext():
            network = model.bind(params)
            return logprobs(network.unembed(network(inputs).hidden), targets)[0]

    return jax.jit(run)


def score(
    model: Model, params: Params, rows: Sequence[Sequence[int]], layout: Layout | None = None
) -> list[np.ndarray]:
    """For each row of tokens, the log-probability of every token but the first, given those before.

    Rows may be of different lengths; they are read in one batch.

    Raises:
        ConfigError: a row of fewer than two tokens.
    """
    if any(len(row) < 2 for row in rows) or not rows:
        raise ConfigError("scoring needs rows of at least two tokens each")
    ways = layout.batch_ways if layout else 1
    width = -(-max(len(row) - 1 for row in rows) // 16) * 16
    tokens = np.zeros((-(-len(rows) // ways) * ways, width + 1), np.int32)
    for place, row in zip(tokens, rows, strict=False):
        place[: len(row)] = row
    out = scorer(model, layout)(params, tokens[:, :-1], tokens[:, 1:])
    return [found[: len(row) - 1] for found, row in zip(np.asarray(out), rows, strict=False)]
