"""What a routing is worth: the loss that asks for even use, and what the experts were given."""

# G groups of tokens, S tokens of a group, E experts, C choices per token, K counted choices.

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.models.gates.balance import Balance, balance_loss
from jscale.models.gates.routing import Routing
from jscale.models.load import Asked, Load


class Judged(NamedTuple):
    """The penalty of a layer, how even it is (1: even), and its load."""

    penalty: Float[Array, ""]
    balance: Float[Array, ""]
    load: Load


def judge(
    asked: Balance,
    routing: Routing,
    scores: Float[Array, "G S E"],
    real: Bool[Array, "G S"],
    rows: Callable[[Array], Array],
) -> Judged:
    """The routing of groups of tokens, as their balance is asked for; `rows` undoes the grouping.

    What is asked of the whole batch is no penalty of the layer: it is in its load.
    """
    counted = jax.vmap(asked.choices)(routing.gates, routing.counted)
    squares = jnp.where(real, jnp.square(jax.nn.logsumexp(scores, -1)), 0.0).sum()
    spread = _spread(asked.scope, routing.gates, counted, real, rows)
    load = _load(routing, scores, real)
    told = jax.lax.stop_gradient(spread)
    if asked.scope != "global":
        penalty = asked.weight * spread + asked.z * squares / jnp.maximum(load.tokens, 1.0)
        return Judged(penalty, told, load)
    E = scores.shape[-1]
    gates = asked.weight * E * jnp.where(real[..., None], routing.gates, 0.0).sum((0, 1))
    whole = Asked(_counts(counted, real, E), gates, asked.z * squares)
    return Judged(jnp.zeros(()), told, load._replace(asked=whole))


def _spread(
    scope: str,
    gates: Float[Array, "G S E"],
    counted: Int[Array, "G S K"],
    real: Bool[Array, "G S"],
    rows: Callable[[Array], Array],
) -> Float[Array, ""]:
    """E · Σ_e f_e P_e, the mean over groups, or over the rows that have tokens."""
    if scope != "sequence":
        return jnp.mean(jax.vmap(balance_loss)(gates, counted, real))
    gates, counted, real = rows(gates), rows(counted), rows(real)
    some = real.any(1)
    each = jax.vmap(balance_loss)(gates, counted, real)
    return jnp.where(some, each, 0.0).sum() / jnp.maximum(some.sum(), 1)


def _load(routing: Routing, scores: Float[Array, "G S E"], real: Bool[Array, "G S"]) -> Load:
    E = scores.shape[-1]
    best = jax.lax.top_k(scores, min(2, E))[0]
    of_real = lambda x: jnp.where(real, x, 0.0).sum()
    wanted, kept = routing.asked < E, routing.experts < E
    load = Load(
        chosen=_counts(routing.asked, real, E),
        mass=_sums(routing.experts, routing.weights, E),
        tokens=real.sum().astype(jnp.float32),
        log_sum=of_real(jax.nn.logsumexp(scores, -1)),
        margin=of_real(best[..., 0] - best[..., -1]),
        highest=jnp.where(real, best[..., 0], -jnp.inf).max(initial=-jnp.inf),
        dropped=(wanted.sum() - kept.sum()).astype(jnp.float32),
        overflow=jnp.zeros(()),
    )
    return jax.lax.stop_gradient(load)


def _counts(index: Int[Array, "G S K"], real: Bool[Array, "G S"], experts: int) -> Array:
    """How often each expert stands in what tokens chose."""
    ones = jnp.broadcast_to(real[..., None], index.shape).astype(jnp.float32)
    return _sums(index, ones, experts)


def _sums(index: Int[Array, "G S K"], values: Float[Array, "G S K"], experts: int) -> Array:
    """By expert, Σ of what stands where it was chosen."""
    hit = index[..., None] == jnp.arange(experts)
    return jnp.where(hit, values[..., None], 0.0).sum((0, 1, 2))
