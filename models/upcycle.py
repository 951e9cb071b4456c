"""Upcycling: the weights of a dense network as those of one with experts that says the same.

Source: Komatsuzaki et al. 2022, arXiv 2212.05055; He et al. 2024, arXiv 2410.07524, whose scale
stands here on the last matrix alone: a gate is no linear map, and would not bear its share.
"""

# D model size, F hidden size, E experts, G shards of a dense feed-forward, L layers of a stack.

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jscale.errors import ConfigError
from jscale.models.dense import Dense, Mixed
from jscale.models.gates import TopK
from jscale.models.layers import SwiGLU
from jscale.models.model import Model, Params
from jscale.models.sparse import Experts, SparseFeed

# What may differ: experts themselves, and what changes no result.
FREE = ("experts", "hidden", "head", "dense", "remat", "longest")
TIMID = 2.0**-20  # how far apart first scores are where weights must be nearly those of equal ones

Flat = dict[str, Any]


@dataclass(frozen=True)
class Upcycling:
    """How a dense network becomes one with experts whose outputs are the same.

    A feed-forward of F numbers is cut into the G = F / F_expert shards that experts of this size
    make, and there are E / G copies of them, one after the other. The router has a random row for
    each copy and the same for all shards of it: a token chooses whole copies, so that its experts'
    results sum to the feed-forward's, times their weights. What these weights lack is made up for
    by `scale`, on `down` alone. Where weights sum to the same for every token (as normalised ones
    do), scores are as a new router's; where not, they are nearly 0 at first.

    Copies begin alike and part in training, because the router sends them other tokens; the shards
    of a copy have other weights, and so their rows of the router get other gradients. Shared
    experts begin with `down` of 0.

    Raises:
        ConfigError: the networks differ in more than experts, or these cannot say the same.
    """

    dense: Any  # config of the network there is
    moe: Any  # config of the network with experts

    def __post_init__(self) -> None:
        _check_families(self.dense, self.moe)
        _check_experts(self.moe.experts)
        _check_fields(self.dense, self.moe)
        self._check_sizes()
        self._check_layers()
        self._check_choice()

    @property
    def inside(self) -> int:
        """The hidden size of an expert."""
        own = self.moe.experts.hidden
        return self.moe.hidden if own is None else own

    @property
    def shards(self) -> int:
        """Into how many experts a feed-forward is cut."""
        return self.dense.hidden // self.inside

    @property
    def copies(self) -> int:
        """How many experts are equal at first."""
        return self.moe.experts.count // self.shards

    @cached_property
    def scale(self) -> float:
        """What multiplies the last matrix of each expert."""
        return self.shards / self._tried.total

    @cached_property
    def spread(self) -> float:
        """How far apart the first scores of copies are."""
        return 1.0 if self._tried.always else TIMID

    def __call__(self, params: Params, key: PRNGKeyArray) -> Params:
        """The weights of the network with experts; `key` is for those that are new."""
        given, out = _flat(params), {}
        to, of = _layers(self.moe), _layers(self.dense)
        for number, (name, like) in enumerate(_flat(Model(self.moe).shapes).items()):
            own = [i for i, layer in enumerate(to) if name.startswith(f"{layer.path}/")]
            if not own:
                out[name] = given[name]
                continue
            inner = name.removeprefix(f"{to[own[0]].path}/")
            stack = lambda inner, own=own: _stacked(given, [of[i] for i in own], inner)
            if not inner.startswith("feed/") or isinstance(to[own[0]].block.feed, SwiGLU):
                out[name] = stack(inner)
                continue
            feed = {each: stack(f"feed/{each}") for each in ("gate", "up", "down")}
            made = self._made(inner, like.shape, feed, jax.random.fold_in(key, number))
            out[name] = made.astype(feed["up"].dtype)
        flat = {path: out["/".join(map(str, path))] for path in _paths(Model(self.moe).shapes)}
        return traverse_util.unflatten_dict(flat)

    def _made(
        self, name: str, shape: tuple[int, ...], feed: Flat, key: PRNGKeyArray
    ) -> Float[Array, "..."]:
        """A weight of a feed-forward with experts, from the dense one's in the same layers."""
        L, D, G, X = *feed["up"].shape[:2], self.shards, self.copies
        match name.removeprefix("feed/").split("/"):
            case ["routed", "router", "kernel"]:
                rows = self.spread * D**-0.5 * jax.random.normal(key, (L, D, X))
                return jnp.repeat(rows, G, 2)
            case ["routed", "expert", "gate" | "up" as which, "kernel"]:
                parts = feed[which].reshape(L, D, G, self.inside).swapaxes(1, 2)
                return jnp.tile(parts, (1, X, 1, 1))
            case ["routed", "expert", "down", "kernel"]:
                parts = feed["down"].reshape(L, G, self.inside, D)
                return self.scale * jnp.tile(parts, (1, X, 1, 1)).astype(jnp.float32)
            case ["shared", "gate" | "up"] | ["shared_gate"]:
                return D**-0.5 * jax.random.normal(key, shape)
            case ["shared", "down"] | ["routed", *_, "bias" | "correction"]:
                return jnp.zeros(shape)
            case _:
                raise ConfigError(f"upcycling does not know how {name} should begin")

    def _check_sizes(self) -> None:
        count, choices = self.moe.experts.count, self.moe.experts.choice.choices
        wide, inside = self.dense.hidden, self.inside
        if wide % inside:
            raise ConfigError(
                f"hidden={wide} of the dense network must be a multiple of the experts' {inside}"
            )
        for what, number in ((f"experts.count={count}", count), (f"choices={choices}", choices)):
            if number % self.shards:
                raise ConfigError(
                    f"{what} must be a multiple of the {self.shards} experts of {inside} that a"
                    f" feed-forward of hidden={wide} is cut into"
                )

    def _check_layers(self) -> None:
        """That all but experts is computed alike, of the same sizes."""
        dense, moe = (_network(config) for config in (self.dense, self.moe))
        _check_same(dense, moe, "blocks")
        for i, (of, to) in enumerate(zip(*map(_layers, (self.dense, self.moe)), strict=True)):
            if type(of.block.feed) is not SwiGLU:
                name = type(of.block.feed).__name__
                raise ConfigError(f"layer {i}: upcycling makes experts of SwiGLU, not of {name}")
            sparse = isinstance(to.block.feed, SparseFeed)
            if not isinstance(to.block, type(of.block)):
                raise ConfigError(f"layer {i} of the two networks is computed in other ways")
            _check_same(of.block, to.block, "feed" if sparse else "")

    def _check_choice(self) -> None:
        if not self._tried.whole:
            raise ConfigError(
                f"choice={self.moe.experts.choice!r} does not choose the {self.shards} experts"
                " together that a feed-forward is cut into: set its limit to None"
            )

    @cached_property
    def _tried(self) -> "Tried":
        """Whom the choice takes, and with what weights, where the shards of a copy score alike."""
        choice, E = self.moe.experts.choice, self.moe.experts.count
        with jax.ensure_compile_time_eval():
            known = {"correction": jnp.zeros(E)} if choice.corrected else {}
            scores = jax.random.normal(jax.random.key(0), (64, self.copies))
            scores = jnp.repeat(scores, self.shards, 1)
            choose = lambda s: choice(s, jnp.ones(64, bool), training=False, **known)
            found, level = choose(scores), choose(0 * scores)
        taken = np.asarray(found.experts) // self.shards
        whole = all(np.unique(row, return_counts=True)[1].min() == self.shards for row in taken)
        sums, even = (np.asarray(x.weights, np.float64).sum(1) for x in (found, level))
        return Tried(whole, float(even[0]), bool(np.ptp(sums) <= 1e-5 * sums.max()))


class Tried(NamedTuple):
    """What a choice does with random scores."""

    whole: bool  # whether it takes all shards of a copy or none
    total: float  # the sum of a token's weights, where all scores are 0
    always: bool  # whether that is their sum whatever the scores are


class Layer(NamedTuple):
    """Where the weights of a layer are, at which place of their stack, and its block."""

    path: str
    at: int
    block: Any


def upcycle(params: Params, dense: Any, moe: Any, key: PRNGKeyArray) -> Params:
    """The weights of `dense` as those of `moe`, whose outputs are the same (`Upcycling`).

    Raises:
        ConfigError: the networks differ in more than experts, or these cannot say the same.
    """
    return Upcycling(dense, moe)(params, key)


def _layers(config: Any) -> list[Layer]:
    """All layers in their order."""
    if isinstance(config, Dense):
        block = nnx.eval_shape(lambda: config.block(nnx.Rngs(0)))
        return [Layer("blocks/block", i, block) for i in range(config.layers)]
    found = {}
    for place in config.kinds.places():
        block = nnx.eval_shape(lambda kind=place.kind: config.block(kind, nnx.Rngs(0)))
        for i, layer in enumerate(place.layers):
            found[layer] = Layer(place.path, i, block)
    return [found[i] for i in range(config.layers)]


def _stacked(given: Flat, layers: list[Layer], inner: str) -> Float[Array, "L ..."]:
    """A weight of several layers."""
    path = layers[0].path
    stack = given[f"{path}/{inner}"]
    if all(layer.path == path for layer in layers) and len(layers) == stack.shape[0]:
        return stack
    return jnp.stack([given[f"{layer.path}/{inner}"][layer.at] for layer in layers])


def _paths(tree: Any) -> list[tuple[Any, ...]]:
    return list(traverse_util.flatten_dict(tree))


def _flat(tree: Any) -> Flat:
    return {"/".join(map(str, path)): x for path, x in traverse_util.flatten_dict(tree).items()}


def _network(config: Any, compute: DTypeLike = jnp.float32) -> Any:
    return nnx.eval_shape(lambda: config.build(nnx.Rngs(0), compute))


def _check_families(dense: Any, moe: Any) -> None:
    for config in (dense, moe):
        if not isinstance(config, Dense | Mixed):
            raise ConfigError(f"upcycling knows no {type(config).__name__}: decoders as Llama is")
    if isinstance(getattr(dense, "experts", None), Experts):
        raise ConfigError(f"{type(dense).__name__} has experts already: upcycle a dense network")
    if not isinstance(getattr(moe, "experts", None), Experts):
        raise ConfigError(f"{type(moe).__name__} has no experts: name a network such as Mixtral")


def _check_experts(experts: Experts) -> None:
    """Raises ConfigError where experts compute what no dense SwiGLU does."""
    if not isinstance(experts.choice, TopK):
        raise ConfigError(f"upcycling needs experts.choice=TopK(…), not {experts.choice!r}")
    wanted = {"weighs": "results", "clamp": None, "latent": None, "precision": None}
    for name, value in wanted.items():
        if (found := getattr(experts, name, value)) != value:
            raise ConfigError(
                f"experts.{name}={found!r}: to say what a dense network says it must be {value!r}"
            )


def _check_fields(dense: Any, moe: Any) -> None:
    """Raises ConfigError with the fields that differ; what one has not is as it is by default."""
    usual = {f.name: f.default for c in (dense, moe) for f in fields(c)}
    apart = []
    for name in (*(n for n in usual if n not in FREE), "head_size"):
        mine, its = (getattr(c, name, usual.get(name)) for c in (dense, moe))
        if mine != its:
            apart.append(f"{name}={mine!r} (not {its!r})")
    if apart:
        raise ConfigError(f"the network with experts must be as the dense one: {', '.join(apart)}")


def _check_same(one: Any, other: Any, without: str) -> None:
    """Raises ConfigError unless the parts of two modules compute alike, with weights alike."""
    parts = [
        {n: x for n, x in vars(m).items() if isinstance(x, nnx.Module) and n != without}
        for m in (one, other)
    ]
    for name in sorted({*parts[0], *parts[1]}):
        both = [part.get(name) for part in parts]
        if None in both or nnx.graphdef(both[0]) != nnx.graphdef(both[1]):
            raise ConfigError(f"the two networks differ in {name}: these are other families")
        shapes = [
            {k: x.shape for k, x in _flat(nnx.to_pure_dict(nnx.state(m))).items()} for m in both
        ]
        for path, shape in shapes[0].items():
            if shapes[1].get(path) != shape:
                raise ConfigError(f"{name}/{path} is {shape} and, with experts, {shapes[1][path]}")
