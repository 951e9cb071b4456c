"""A layer of experts, from its router to the weighted sum, by every way to dispatch.

Experts are forced on tokens, so that all who compete have the same to do: by Zipf's law, as
unequally as routers choose them, or evenly. Tokens and experts are split over all devices.
"""

# T tokens, C choices per token, E experts, D model size, F hidden size of an expert.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import lax

from jscale.errors import ConfigError
from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    differentiable,
    exactly,
)
from jscale.mesh import Layout, make_mesh
from jscale.models.decoder import Context
from jscale.models.dispatching import WAYS, Dispatch, Way
from jscale.models.feed import GLU
from jscale.models.gates import Balance, Forced
from jscale.models.model import Model
from jscale.models.moe import Mixture, MoE
from jscale.models.sparse import STYLE
from jscale.pallas_kernels.device import device

MOST = 2**26  # numbers that a table of choices by rows may have
UNEVEN = 0.2  # exponent of Zipf's law: of 128 experts the first is used twice as often as the mean


@dataclass(frozen=True)
class Case:
    """A layer and its tokens, and how unequally experts are used (0: evenly)."""

    tokens: int = 2048
    dim: int = 256
    hidden: int = 256
    experts: int = 16
    choices: int = 4
    devices: int = 1
    skew: float = UNEVEN
    room: float | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.devices < 1 or self.tokens % self.devices or self.experts % self.devices:
            raise ConfigError(
                f"{self.tokens} tokens and {self.experts} experts must divide over"
                f" {self.devices} device(s)"
            )

    def __str__(self) -> str:
        split = f" over {self.devices} devices" if self.devices > 1 else ""
        load = f"use as (e + 1)^-{self.skew:g}" if self.skew else "even use"
        return (
            f"{self.tokens:,} tokens of {self.dim:,} to {self.choices} of {self.experts} experts of"
            f" {self.hidden:,}{split}, {load}, {self.dtype}"
        )

    @property
    def layout(self) -> Layout:
        """All devices of the case along the experts' axis."""
        return Layout(make_mesh(devices=jax.devices()[: self.devices], expert=self.devices))

    def layer(self, by: str) -> MoE:
        """The layer, which dispatches in a way."""
        choice, dispatch = Forced(self.choices, self.skew), Dispatch(by, self.room)
        of, even = GLU(self.hidden), Balance(0.0)
        return MoE(self.experts, of, choice=choice, balance=even, dispatch=dispatch)

    def way(self, by: str) -> Way:
        """How the layer dispatches, where that is named or `auto`."""
        model = model_of(self, by)
        with self.layout.active():
            return model.bind(model.shapes).way(self.tokens)


@lru_cache(maxsize=64)
def model_of(case: Case, by: str, dtype: str | None = None) -> Model:
    """The layer as a model, which keeps to its room."""
    kept, dtype = case.room is not None, dtype or case.dtype
    model = Model(Alone(case.layer(by), case.dim), dtype, dtype, bounded=kept)
    assert model.shapes  # found here, not under a mesh, whose axes have other names
    return model


@dataclass(frozen=True)
class Alone:
    """A layer as a whole network, so that a `Model` has its weights and their axes."""

    feed: MoE
    dim: int

    def build(self, rngs: nnx.Rngs, compute: Any) -> Mixture:
        return self.feed.build(self.dim, rngs, STYLE)


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """Layers of Qwen3-30B-A3B and of Mixtral-8x7B on accelerators, used unevenly and evenly."""
    n = jax.device_count()
    if quick:
        found = [Case(32, 16, 16, 8, 2, dtype="float32" if platform == "cpu" else "bfloat16")]
    elif platform == "cpu":
        found = [Case(dtype="float32")]
    else:
        found = [Case(16_384, 2048, 768, 128, 8), Case(16_384, 4096, 14_336, 8, 2)]
    found = [c if c.experts % n or c.tokens % n else replace(c, devices=n) for c in found]
    return [replace(case, skew=skew) for case in found for skew in (UNEVEN, 0.0)[: 2 - quick]]


def inputs(case: Case) -> dict[str, Any]:
    """Tokens and weights, laid out as the layer has them."""
    layout, model = case.layout, model_of(case, "auto")
    rows = case.devices, case.tokens // case.devices, case.dim
    x = jax.random.normal(jax.random.key(0), rows, case.dtype)
    weights = traverse_util.flatten_dict(model.init(jax.random.key(1), layout), sep="/")
    return {"x": jax.device_put(x, jax.NamedSharding(layout.mesh, jax.P("expert"))), **weights}


def work(case: Case) -> dict[str, Work]:
    """Products of router and experts, two more backward; numbers read or written once.

    A simulated device is a part of the processor whose seconds are counted; a real one has its
    share.
    """
    share = 1 if device().platform == "cpu" else case.devices
    matrix = 3 * case.dim * case.hidden
    each = case.dim * case.experts + case.choices * matrix
    forward = 2.0 * case.tokens * each / share
    numbers = (2 * case.tokens * (case.choices + 1) * case.dim + case.experts * matrix) / share
    size = float(jnp.dtype(case.dtype).itemsize * numbers)
    return {
        "forward": Work(forward, size),
        "backward": Work(2 * forward, 2 * size),
        "training": Work(3 * forward, 3 * size),
    }


def context(x: Any) -> Context:
    """Every row is a text of its own."""
    return Context(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))


def nested(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights as the model has them."""
    return traverse_util.unflatten_dict(dict(weights), sep="/")


def run(case: Case, by: str) -> Callable[..., Any]:
    """The layer with a way as a function of its inputs."""

    def one(x: Any, **weights: Any) -> Any:
        model = model_of(case, by, str(x.dtype))
        with case.layout.active():
            return model.bind(nested(weights))(x, context(x))[0]

    return one


def everyone(case: Case) -> Callable[..., Any]:
    """Every expert on every token, one after another: nothing is dispatched."""

    def one(x: Any, **weights: Any) -> Any:
        layer = model_of(case, "one_hot", str(x.dtype)).bind(nested(weights))
        routing, _ = layer.route(x, context(x))
        expert = {n: w for n, w in weights.items() if n.startswith("expert/")}

        @jax.checkpoint
        def add(out: Any, given: Any) -> Any:
            e, w = given
            share = (routing.weights * (routing.experts == e)).sum(-1)
            wide = jax.nn.silu(x @ w["expert/gate/kernel"]) * (x @ w["expert/up/kernel"])
            return out + share[..., None] * (wide @ w["expert/down/kernel"]), None

        return lax.scan(add, jnp.zeros_like(x), (jnp.arange(case.experts), expert))[0]

    return one


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By one-hot products on one device, or, where their tables are too large, by every expert."""
    alone = replace(case, devices=1, room=None)
    here = {name: jax.device_put(x, jax.devices()[0]) for name, x in given.items()}
    return exactly(everyone(alone) if too_large(case) else run(alone, "one_hot"), here)


def too_large(case: Case) -> str | None:
    """Why one-hot products cannot compute it."""
    numbers = (case.tokens * case.choices) ** 2
    return f"needs a table of {numbers:,} numbers" if numbers > MOST else None


def contenders(case: Case) -> dict[str, Contender | str]:
    """All ways."""
    found: dict[str, Contender | str] = {}
    for by in WAYS:
        alone = case.devices == 1 and by not in ("local", "one_hot")
        obstacle = "needs several devices" if alone else None
        if by == "one_hot":
            obstacle = too_large(case)
        found[by] = obstacle or differentiable(run(case, by))
    return found


def chosen(case: Case) -> str:
    """The way that a layer takes by itself."""
    return case.way("auto").picked.by


SUBJECT = Subject(
    *("moe_layer", Case, cases, inputs, work, values, contenders, chosen),
    limits={"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2},
)
