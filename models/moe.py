"""A feed-forward layer of experts: a gate chooses for each token whose parameters it uses.

The gate sees all tokens of a group and decides who is dropped; only then do tokens go to their
experts' devices, where they are multiplied in groups. So results are the same on any mesh.
"""

# B batch, T length, D model size, E experts, C choices per token, G groups, S tokens of a group,
# R rows received, M rows of a device's experts, F hidden size.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh import Axes, constrain, per_shard, split_over
from jscale.models import experts
from jscale.models.decoder import Context
from jscale.models.draws import dropout, stream
from jscale.models.feed import GLU, MLP, Feed, Reports, Style
from jscale.models.gates import Choice, Groups, LinearRouter, Routing, Scores, Top2
from jscale.models.layers import constant
from jscale.models.sequence import ROWS, ways
from jscale.pallas_kernels.dispatch import (
    AllToAll,
    Dispatcher,
    Gather,
    Local,
    Ragged,
    combine,
    dispatch,
)

EXCHANGES: dict[str, Callable[[Any], Dispatcher]] = {
    "gather": Gather,
    "all_to_all": AllToAll,
    "ragged": Ragged,
}


@dataclass(frozen=True)
class MoE:
    """`experts` feed-forwards of which each token uses the few that its gate chooses.

    A part of config; it stands wherever a network takes a feed-forward. What it reports beside
    the penalty are means over groups (docs/gallery.md).

    Raises:
        ConfigError: a part that is not what it must be.
    """

    experts: int  # how many
    of: MLP | GLU  # each of them
    scores: Scores = LinearRouter()  # how well an expert fits a token: LinearRouter, CosineRouter
    choice: Choice = Top2()  # who is chosen: Top1, Top2, TopK
    groups: Groups = Groups()  # of tokens, in each of which an expert has so many slots
    padding: bool = False  # whether padding is sent to experts as well
    balance: float = 0.01  # weight of the loss that asks for even use
    exchange: str = "gather"  # between devices that share experts: gather, all_to_all, ragged
    weighs: str = "results"  # what a weight multiplies: results of an expert, or its inputs

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise ConfigError(f"experts must be at least 1, not {self.experts}")
        if not self.balance >= 0:
            raise ConfigError(f"MoE.balance must not be negative, not {self.balance}")
        if self.exchange not in EXCHANGES:
            hint = did_you_mean(self.exchange, EXCHANGES)
            raise ConfigError(f"no exchange {self.exchange!r} of a MoE; {hint}")
        if self.weighs not in ("results", "inputs"):
            raise ConfigError(f"MoE.weighs must be 'results' or 'inputs', not {self.weighs!r}")
        for name, wanted in dict(of=(MLP, GLU), scores=Scores, choice=Choice).items():
            if not isinstance(getattr(self, name), wanted):
                raise ConfigError(f"MoE.{name} cannot be {getattr(self, name)!r}")
        self.choice.check(self.experts)

    def build(self, dim: int, rngs: nnx.Rngs, style: Style) -> "Mixture":
        return Mixture(self, dim, rngs, style)


# `MoE` is a `Feed` as well: it is named so that a recipe's text can hold it wherever one stands.
Feeds = Feed | MoE | tuple[Feed | MoE, ...]


def feeds_of(feed: Feeds) -> tuple[Feed, ...]:
    """The feed-forwards that take turns over the layers.

    Raises:
        ConfigError: there is none.
    """
    if feed == ():
        raise ConfigError("feed must be a feed-forward or a tuple of them, not an empty tuple")
    return feed if isinstance(feed, tuple) else (feed,)


def check_feeds(feed: Feeds, layers: int) -> None:
    """Raises ConfigError unless so many layers are whole turns."""
    turns = len(feeds_of(feed))
    if layers % turns:
        raise ConfigError(
            f"{layers} layers must be a multiple of the {turns} kinds of feed-forward that take"
            " turns"
        )


class Mixture(nnx.Module):
    """What `MoE` builds."""

    def __init__(self, c: MoE, dim: int, rngs: nnx.Rngs, style: Style):
        self.c, self.drop, self.groups = c, style.drop, c.groups.within(style.decodes)
        self.router = c.scores.build(dim, c.experts, rngs, style.scheme)
        self.correction = constant(0.0, scale=c.experts) if c.choice.corrected else None
        # Of its experts a token uses few: what `Model.shares` tells.
        share, axes = c.choice.choices / c.experts, lambda w: w.get_metadata()["out_sharding"]
        self.expert = jax.tree.map(
            lambda w: w.replace(out_sharding=("experts", *axes(w)), share=share),
            jax.vmap(lambda rngs: c.of.build(dim, rngs, style))(rngs.split(c.experts)),
            is_leaf=lambda w: isinstance(w, nnx.Variable),
        )

    def __call__(
        self, x: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], Reports]:
        with jax.named_scope("gate"):
            routing = self.route(x, context)
        with jax.named_scope("experts"):
            y = self._mixed(x, routing.experts, routing.weights, context.key)
        y = dropout(y, self.drop.units, stream(context.key, "feed"))
        loss = routing.loss
        told = {"balance": lax.stop_gradient(loss), **routing.reports}
        return y, {"penalty": self.c.balance * loss, **told}

    def route(self, x: Float[Array, "B T D"], context: Context) -> Routing:
        """The experts and weights of all tokens, [B, T, C]; loss and reports are means of groups.

        Raises:
            ConfigError: the tokens cannot be grouped.
        """
        B, T, E = *x.shape[:2], self.c.experts
        scores, real = self.router(x), self._real(x, context)
        groups, key = self._groups(B, T, context.key is not None), stream(context.key, "gate")
        if context.places is not None:  # in the order of the text, whoever holds which part
            order = jnp.argsort(context.places, 1)
            scores = jnp.take_along_axis(scores, order[..., None], 1)
            real = jnp.take_along_axis(real, order, 1)
        if not self.c.choice.alone:
            scores = _together(scores, groups)
        scores, real = groups.fold(scores), groups.fold(real)
        uniforms = None
        if key is not None and (shape := self.c.choice.draws(B * T // groups.count, E)):
            uniforms = jax.random.uniform(key, (groups.count, *shape))
        correction = self.correction
        known = {} if correction is None else {"correction": correction[...].astype(jnp.float32)}
        choose = partial(self.c.choice, training=key is not None, **known)
        each = jax.vmap(lambda s, r, u: choose(s, r, uniforms=u))(scores, real, uniforms)
        chosen = [groups.unfold(a, B, T) for a in (each.experts, each.weights)]
        if context.places is not None:
            chosen = [jnp.take_along_axis(a, context.places[..., None], 1) for a in chosen]
        return Routing(*chosen, *jax.tree.map(jnp.mean, (each.loss, each.reports)))

    def _real(self, x: Float[Array, "B T D"], context: Context) -> Bool[Array, "B T"]:
        """Which tokens are routed."""
        if self.c.padding or context.segments is None:
            return jnp.ones(x.shape[:2], bool)
        return context.segments != 0

    def _groups(self, batch: int, length: int, training: bool) -> Groups:
        """The groups of a batch; one where there is no bound that they could matter to."""
        if not training and getattr(self.c.choice, "evaluation", None) is None:
            return Groups()
        self.groups.check(batch, length)
        return self.groups

    def _mixed(
        self,
        x: Float[Array, "B T D"],
        chosen: Int[Array, "B T C"],
        weights: Float[Array, "B T C"],
        key: Any,
    ) -> Float[Array, "B T D"]:
        """Σ_c weights[c] · expert chosen[c] of x, by the devices that have these experts."""
        held, lay = experts.held(self.expert)
        shared, split = split_over("experts"), split_over("experts", None, "mlp")
        name = shared[0] if len(shared) == 1 else shared
        by = EXCHANGES[self.c.exchange](name) if shared else Local()
        key = stream(key, "activation") if self.drop.activation else None

        def part(x: Array, chosen: Array, weights: Array, held: Any, key: Any) -> Array:
            flat = lambda a: a.reshape(-1, a.shape[-1])
            given = flat(x), flat(chosen), flat(weights)
            tokens, chosen, weights = _weighed(*given) if self.c.weighs == "inputs" else given
            received, ticket = dispatch(tokens, chosen, self.c.experts, by)
            rows = experts.Rows(received, split)
            y = experts.run(self.expert, held, rows, _own(key, split))
            out = combine(y, weights, ticket, by)
            out = lax.psum(out, split) if split else out
            if self.c.weighs == "inputs":
                out = out.reshape(-1, self.c.choice.choices, x.shape[-1]).sum(1)
            return out.reshape(x.shape)

        rows = Axes(*ROWS, None)
        return per_shard(
            *(part, x, chosen, weights, held, key),
            inputs=(rows, rows, rows, lay, Axes()),
            outputs=rows,
        )


def _weighed(
    x: Float[Array, "R D"], chosen: Int[Array, "R C"], weights: Float[Array, "R C"]
) -> tuple[Float[Array, "RC D"], Int[Array, "RC 1"], Float[Array, "RC 1"]]:
    """A row for each choice, multiplied by its weight, and its one expert, whose weight is 1."""
    rows = (x[:, None] * weights[:, :, None].astype(x.dtype)).reshape(-1, x.shape[1])
    return rows, chosen.reshape(-1, 1), jnp.ones_like(weights).reshape(-1, 1)


def _own(key: Any, split: tuple[str, ...]) -> Any:
    """A key of this device alone: units are dropped where the rows of several devices meet."""
    axes = (*split_over("batch"), *split_over(*ROWS), *split)
    return jax.random.fold_in(key, lax.axis_index(axes)) if axes and key is not None else key


def _together(scores: Float[Array, "B T E"], groups: Groups) -> Float[Array, "B T E"]:
    """Scores laid out so that no group is split over devices."""
    if groups.count % ways("batch") == 0 and not split_over(*ROWS):
        return constrain(scores, "batch", None, None)
    return constrain(scores, None, None, None)
