"""What a layer of experts does one after the other, each timed alone: forward passes only.

With several devices the way `local` brings weights to tokens instead of tokens to weights; that is
its dispatch.
"""

# n devices, T tokens of one, D model size, E experts, C choices per token.

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

from jscale.launch.bench.rows.moe_layer import Case, context, inputs, model_of, nested
from jscale.launch.bench.subject import Program, compiled
from jscale.models import experts
from jscale.models.moe import Mixture
from jscale.pallas_kernels.dispatch import combine, dispatch

STAGES = ("router", "dispatch", "experts", "combine")
AXIS = "expert"


def stages(case: Case, by: str) -> dict[str, Program]:
    """The stages of a layer that dispatches in a way, each compiled for what the one before gives.

    Whatever the compiler refuses, it raises.
    """
    given, way = inputs(case), case.way(by)
    x, weights = given.pop("x"), nested(given)
    model, layout = model_of(case, by), case.layout

    def routed(weights: Any, x: Any) -> Any:
        with layout.active():
            routing, _ = model.bind(weights).route(x, context(x))
            return routing.experts, routing.weights

    layer: Mixture = model.bind(weights)
    split = lambda w: w.reshape(case.devices, -1, *w.shape[1:])
    own = {name: split(part["kernel"]) for name, part in weights["expert"].items()}

    def sent(x: Any, chosen: Any, held: Any) -> Any:
        if way.gathers:
            held = jax.tree.map(lambda w: lax.all_gather(w, way.gathers, tiled=True), held)
        here = way.dispatcher(chosen.size)
        return *dispatch(x, chosen, case.experts, here), held

    def multiplied(received: Any, held: Any) -> Any:
        return experts.run(layer.expert, held, experts.Rows(received, ()), None)

    def summed(y: Any, factors: Any, ticket: Any) -> Any:
        return combine(y, factors, ticket, way.dispatcher(factors.size))

    each = partial(on_each, case)
    chosen, factors = jax.jit(routed)(weights, x)
    received, ticket, held = jax.jit(each(sent))(x, chosen, own)
    y = jax.jit(each(multiplied))(received, held)
    return {
        "router": compiled(routed, weights, x),
        "dispatch": compiled(each(sent), x, chosen, own),
        "experts": compiled(each(multiplied), received, held),
        "combine": compiled(each(summed), y, factors, ticket),
    }


def on_each(case: Case, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one device, of what all have: the first axis of every array is theirs."""

    def one(*given: Any) -> Any:
        mine = jax.tree.map(lambda a: a[0], given)
        return jax.tree.map(lambda a: a[None], function(*mine))

    if case.devices == 1:
        return one
    mine, mesh = jax.P(AXIS), case.layout.mesh
    return jax.shard_map(one, mesh=mesh, in_specs=mine, out_specs=mine, check_vma=False)
