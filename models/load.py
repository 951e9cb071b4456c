"""What a layer's experts were given to do: sums over tokens, so that parts of a batch add up.

They are results of a layer like any other: what is computed again on the way back is not counted
again.
"""

# L layers of a stack, E experts.

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PREFIX = "load/"  # of the report of a layer of experts, before the path of its weights


class Asked(NamedTuple):
    """What a balance over the whole batch is made of; gradients go through the last two.

    Weights of the balance are in them, so that their sums over parts of a batch need no more.
    """

    counted: Float[Array, "*L E"]  # choices by expert
    gates: Float[Array, "*L E"]  # Σ of probabilities, times E and the weight of balance
    squares: Float[Array, "*L"]  # Σ of (logΣexp of scores)², times its weight


class Load(NamedTuple):
    """Of the tokens that were routed. Nothing but `asked` carries a gradient."""

    chosen: Float[Array, "*L E"]  # choices by expert, those that found no room among them
    mass: Float[Array, "*L E"]  # Σ of the weights with which an expert's results count
    tokens: Float[Array, "*L"]
    log_sum: Float[Array, "*L"]  # Σ of logΣexp of a token's scores
    margin: Float[Array, "*L"]  # Σ of the best score over the second
    highest: Float[Array, "*L"]  # the highest score of all
    dropped: Float[Array, "*L"]  # choices that found no slot of their expert
    overflow: Float[Array, "*L"]  # choices that found no room on their device
    asked: Asked | None = None  # None: nothing is asked of the whole batch

    def none(self) -> "Load":
        """Of no tokens, in the same shapes."""
        zeros = jax.tree.map(jnp.zeros_like, self)
        return zeros._replace(highest=jnp.full_like(self.highest, -jnp.inf))

    def plus(self, other: "Load") -> "Load":
        """Of both parts of a batch."""
        both = jax.tree.map(jnp.add, self, other)
        return both._replace(highest=jnp.maximum(self.highest, other.highest))


Loads = dict[str, Load]  # by the path of the layer's weights, such as "blocks/block/feed/routed"


def add_loads(some: Loads, others: Loads) -> Loads:
    """The loads of two parts of a batch, which have the same layers."""
    return {path: load.plus(others[path]) for path, load in some.items()}


def asked(loads: Loads) -> dict[str, tuple[Any, Any]]:
    """What gradients go through, of the layers that have it."""
    return {p: (a.gates, a.squares) for p, load in loads.items() if (a := load.asked) is not None}


def pulls(loads: Loads) -> dict[str, tuple[Array, Array]]:
    """The derivative of `penalty` by each number of `asked(loads)`, given those of the whole batch.

    It depends on counts alone, which have no gradient: so each part of a batch can be
    differentiated by itself, exactly.
    """
    return {path: _pull(load) for path, load in loads.items() if load.asked is not None}


def _pull(load: Load) -> tuple[Array, Array]:
    assert load.asked is not None
    tokens = jnp.maximum(load.tokens, 1.0)
    total = jnp.maximum(load.asked.counted.sum(-1), 1.0)
    return load.asked.counted / (total * tokens)[..., None], 1.0 / tokens


def penalty(loads: Loads) -> Float[Array, ""]:
    """Σ over layers of weight · E · Σ_e f_e P_e and of z · mean (logΣexp)², over the whole batch.

    f_e is the share of choices that expert e has, P_e the mean of its probability. Source: Qiu et
    al. 2025, Demons in the Detail, arXiv 2501.11873.
    """
    total = jnp.zeros(())
    for path, (by_gates, by_squares) in pulls(loads).items():
        own = loads[path].asked
        assert own is not None
        total += (by_gates * own.gates).sum() + (by_squares * own.squares).sum()
    return total
