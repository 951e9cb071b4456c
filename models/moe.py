"""A feed-forward layer of experts: a gate chooses for each token whose parameters it uses.

The gate sees all tokens of a group and decides who is dropped; only then do tokens go to their
experts' devices, where they are multiplied in groups. So results are the same on any mesh.
"""

# B batch, T length, D model size, E experts, C choices per token, G groups, S tokens of a group,
# R rows received, M rows of a device's experts, F hidden size.

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import Axes, constrain, per_shard, split_over
from jscale.models import experts
from jscale.models.decoder import Context
from jscale.models.dispatching import Dispatch, Spread, Way, token_axes, way_of
from jscale.models.draws import dropout, stream
from jscale.models.feed import GLU, MLP, Feed, Linear, Reports, Style
from jscale.models.gates import (
    Balance,
    Choice,
    Groups,
    LinearRouter,
    Noise,
    Routing,
    Scores,
    Top2,
)
from jscale.models.gates.judge import Judged, judge
from jscale.models.gates.routing import check_stack, warning_of
from jscale.models.load import PREFIX
from jscale.models.overlap import dealt, through
from jscale.models.sequence import ROWS, ways
from jscale.models.steered import Placed, steered
from jscale.pallas_kernels.dispatch import Received


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
    balance: Balance = Balance(0.01)  # how even use is asked for
    dispatch: Dispatch = Dispatch()  # how tokens get to experts that devices share
    weighs: str = "results"  # what a weight multiplies: results of an expert, or its inputs
    latent: int | None = None  # size to which tokens are brought for experts; None: as they are
    noise: Noise = Noise()  # of the router, in training

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise ConfigError(f"experts must be at least 1, not {self.experts}")
        if self.latent is not None and self.latent < 1:
            raise ConfigError(f"MoE.latent must be at least 1 or None, not {self.latent}")
        if self.weighs not in ("results", "inputs"):
            raise ConfigError(f"MoE.weighs must be 'results' or 'inputs', not {self.weighs!r}")
        parts = dict(of=(MLP, GLU), scores=Scores, choice=Choice, balance=Balance, noise=Noise)
        for name, wanted in parts.items():
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


class Mixture(Placed):
    """What `MoE` builds.

    Its report `load/…`, named by the `path` of its weights in the whole network, is a `Load`.
    """

    def __init__(self, c: MoE, dim: int, rngs: nnx.Rngs, style: Style):
        check_stack(c.choice, style.decodes)
        self.c, self.drop, self.groups = c, style.drop, c.groups.within(style.decodes)
        self.router = c.scores.build(dim, c.experts, rngs, style.scheme)
        corrected = c.choice.corrected
        self.correction = steered(c.balance.steer, scale=c.experts) if corrected else None
        inside = dim if c.latent is None else c.latent
        make = lambda **sizes: Linear(sizes, rngs, style.scheme, 1.0, bias=False)
        self.reduce = None if c.latent is None else make(embed=dim, head=inside)
        self.restore = None if c.latent is None else make(head=inside, embed=dim)
        # Of its experts a token uses few: what `Model.shares` tells.
        share, axes = c.choice.choices / c.experts, lambda w: w.get_metadata()["out_sharding"]
        self.expert = jax.tree.map(
            lambda w: w.replace(out_sharding=("experts", *axes(w)), share=share),
            jax.vmap(lambda rngs: c.of.build(inside, rngs, style))(rngs.split(c.experts)),
            is_leaf=lambda w: isinstance(w, nnx.Variable),
        )

    @property
    def warning(self) -> str | None:
        """What its choice of experts must tell."""
        return warning_of(self.c.choice)

    @property
    def counted(self) -> bool:
        """Whether it is steered, balanced over the whole batch, or has bounds."""
        return self.correction is not None or self.c.balance.scope == "global" or self.limited

    @property
    def limited(self) -> bool:
        """Whether devices have room for only so many rows."""
        return self.c.dispatch.room is not None

    def __call__(
        self, x: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], Reports]:
        with jax.named_scope("gate"):
            routing, judged = self.route(x, context)
        with jax.named_scope("experts"):
            y = x if self.reduce is None else self.reduce(x)
            y, lost = self._mixed(y, routing.experts, routing.weights, context.key)
            y = y if self.restore is None else self.restore(y)
        y = dropout(y, self.drop.units, stream(context.key, "feed"))
        load = judged.load._replace(overflow=lost.astype(jnp.float32))
        told = {"penalty": judged.penalty, "balance": judged.balance, **routing.reports}
        return y, {**told, PREFIX + self.path: load}

    def route(self, x: Float[Array, "B T D"], context: Context) -> tuple[Routing, Judged]:
        """The experts of all tokens, [B, T, C], and how even that is; reports are means of groups.

        Raises:
            ConfigError: the tokens cannot be grouped.
        """
        B, T, E = *x.shape[:2], self.c.experts
        scores, real = self._scores(x, context), self._real(x, context)
        tokens = context.tokens if getattr(self.c.choice, "by_token", False) else None
        groups, key = self._groups(B, T, context.key is not None), stream(context.key, "gate")
        if context.places is not None:  # in the order of the text, whoever holds which part
            order = jnp.argsort(context.places, 1)
            scores = jnp.take_along_axis(scores, order[..., None], 1)
            real = jnp.take_along_axis(real, order, 1)
            tokens = None if tokens is None else jnp.take_along_axis(tokens, order, 1)
        if not self.c.choice.alone:
            scores = _together(scores, groups)
        scores, real = groups.fold(scores), groups.fold(real)
        uniforms = None
        if key is not None and (shape := self.c.choice.draws(B * T // groups.count, E)):
            uniforms = jax.random.uniform(key, (groups.count, *shape))
        correction = self.correction
        known = {} if correction is None else {"correction": correction[...].astype(jnp.float32)}
        choose = partial(self.c.choice, training=key is not None, **known)
        given = {} if tokens is None else {"tokens": groups.fold(tokens)}
        each = jax.vmap(lambda s, r, u, more: choose(s, r, uniforms=u, **more))(
            scores, real, uniforms, given
        )
        judged = judge(self.c.balance, each, scores, real, lambda a: groups.unfold(a, B, T))
        chosen = [groups.unfold(a, B, T) for a in each[:-1]]
        if context.places is not None:
            chosen = [jnp.take_along_axis(a, context.places[..., None], 1) for a in chosen]
        return Routing(*chosen, reports=jax.tree.map(jnp.mean, each.reports)), judged

    def _scores(self, x: Float[Array, "B T D"], context: Context) -> Float[Array, "B T E"]:
        read = self.c.noise.read(x, context.key)
        return self.c.noise.said(self.router(read), context.key)

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

    def way(self, tokens: int) -> Way:
        """How the tokens of a batch, so many in all, get to their experts under the layout."""
        expert, asked = self.expert, self.c.dispatch
        # Of a stack of layers there is an axis more before those of a matrix.
        sizes = [
            m.kernel.shape[-2:] for m in (expert.gate, expert.up, expert.down) if m is not None
        ]
        weights, dim = self.c.experts * sum(map(math.prod, sizes)), sizes[-1][-1]
        spread = Spread.under(tokens, self.c.choice.choices, dim, weights)
        return way_of(asked if self.bounded else asked.unbounded, spread)

    def _mixed(
        self,
        x: Float[Array, "B T D"],
        chosen: Int[Array, "B T C"],
        weights: Float[Array, "B T C"],
        key: Any,
    ) -> tuple[Float[Array, "B T D"], Int[Array, ""]]:
        """Σ_c weights[c] · expert chosen[c] of x, by the devices that have these experts.

        And how many choices of the whole batch found no room.
        """
        held, lay = experts.held(self.expert)
        split, way = split_over("experts", None, "mlp"), self.way(x.shape[0] * x.shape[1])
        idle, counted = way.spread.idle, (*token_axes(), *way.spread.idle)
        key = stream(key, "activation") if self.drop.activation else None
        total = lambda a, axes=split: lax.psum(a, axes) if axes else a

        def part(x: Array, chosen: Array, weights: Array, held: Any, key: Any) -> Any:
            flat = lambda a: a.reshape(-1, a.shape[-1])
            given = flat(x), flat(chosen), flat(weights)
            given = _weighed(*given) if self.c.weighs == "inputs" else given
            if way.gathers:
                held = jax.tree.map(lambda w: lax.all_gather(w, way.gathers, tiled=True), held)
            own = _own(key, (*idle, *split))

            def run(received: Received, chunk: int) -> Array:
                drawn = jax.random.fold_in(own, chunk) if chunk and own is not None else own
                return experts.run(self.expert, held, experts.Rows(received, split), drawn)

            send = lambda mine: through(mine, self.c.experts, way, run, total)
            out, lost = dealt(given, idle, send)
            if self.c.weighs == "inputs":
                out = out.reshape(-1, self.c.choice.choices, x.shape[-1]).sum(1)
            return out.reshape(x.shape), total(lost, counted)

        rows = Axes(*ROWS, None)
        return per_shard(
            *(part, x, chosen, weights, held, key),
            inputs=(rows, rows, rows, lay, Axes()),
            outputs=(rows, Axes()),
        )


def _weighed(
    x: Float[Array, "R D"], chosen: Int[Array, "R C"], weights: Float[Array, "R C"]
) -> tuple[Float[Array, "RC D"], Int[Array, "RC 1"], Float[Array, "RC 1"]]:
    """A row for each choice, multiplied by its weight, and its one expert, whose weight is 1."""
    rows = (x[:, None] * weights[:, :, None].astype(x.dtype)).reshape(-1, x.shape[1])
    return rows, chosen.reshape(-1, 1), jnp.ones_like(weights).reshape(-1, 1)


def _own(key: Any, split: tuple[str, ...]) -> Any:
    """A key of this device alone: units are dropped where the rows of several devices meet."""
    axes = (*token_axes(), *split)
    return jax.random.fold_in(key, lax.axis_index(axes)) if axes and key is not None else key


def _together(scores: Float[Array, "B T E"], groups: Groups) -> Float[Array, "B T E"]:
    """Scores laid out so that no group is split over devices."""
    if groups.count % ways("batch") == 0 and not split_over(*ROWS):
        return constrain(scores, "batch", None, None)
    return constrain(scores, None, None, None)
