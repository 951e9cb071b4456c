"""Feed-forward layers, and what is asked of any that stands in their place (experts, …).

A config holds a `Feed`: a small value such as `MLP(256)`. A network builds it with what its layers
have in common (`Style`), and calls what was built with hidden states and its context. That gives
the result and reports by name; the report `penalty`, if there is one, is what the layer itself
wants small, times its weight: networks sum it over layers into their `Output.penalty`.
"""

# B batch, T length, D model size, F hidden size, L layers.

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.activations import activate, check_activation
from jscale.models.blockwise import Blockwise
from jscale.models.draws import dropout, stream
from jscale.models.initial import SCHEMES, Fans, Scheme, named
from jscale.models.layers import project
from jscale.models.load import PREFIX, Loads
from jscale.models.norms import Norm

Reports = dict[str, Any]


@dataclass(frozen=True)
class Drop:
    """Rates at which training drops, each from 0 to below 1.

    Raises:
        ConfigError: a rate that is no probability below 1.
    """

    units: float = 0.0  # of embeddings and of what attention and feed-forward add
    attention: float = 0.0  # of attention's probabilities, which are then held whole (slower)
    activation: float = 0.0  # inside the feed-forward
    path: float = 0.0  # of whole branches: 0 in the first layer, so much in the last

    def __post_init__(self) -> None:
        for name in ("units", "attention", "activation", "path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"drop.{name} must be from 0 to below 1, not {vars(self)[name]}")

    def paths(self, layers: int) -> Float[Array, "L"] | None:
        """The rate of each layer at which its branches are left out; None where none ever is."""
        return jnp.linspace(0.0, self.path, layers) if self.path else None


@dataclass(frozen=True)
class Style:
    """What the layers of a stack have in common when they are built.

    `gain` multiplies the first weights of values, outputs and feed-forwards; `inner` is the norm
    that Sub-LN puts inside branches, None where there is none. `decodes` says whether the stack is
    a decoder.
    """

    scheme: Scheme = field(default_factory=lambda: SCHEMES["torchscale"])
    gain: float = 1.0
    inner: Norm | None = None
    drop: Drop = Drop()
    decodes: bool = False


@runtime_checkable
class Feed(Protocol):
    """A choice of feed-forward layer. `build` makes one of a model's size.

    What it makes maps (x [B, T, D], context) to (y [B, T, D], reports). `context.key` is None
    where nothing is drawn; `context.segments` of 0 is padding.
    """

    def build(self, dim: int, rngs: nnx.Rngs, style: Style) -> nnx.Module: ...


class Linear(nnx.Module):
    """x W + b, of dimensions named `before` and `after`."""

    def __init__(
        self, sizes: dict[str, int], rngs: nnx.Rngs, scheme: Scheme, gain: float, bias: bool = True
    ):
        (before, into), (after, out) = sizes.items()
        fans = Fans(into, out)
        self.kernel = named(scheme.matrix(rngs.params(), (into, out), fans, gain), before, after)
        bias_axis = "scale" if after == "embed" else after
        first = scheme.bias(rngs.params(), (out,), fans, gain) if bias else None
        self.bias = None if first is None else named(first, bias_axis)

    def __call__(self, x: Float[Array, "B T X"]) -> Float[Array, "B T Y"]:
        y = project("btd,df->btf", x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


@dataclass(frozen=True)
class MLP:
    """f(x U + b) W + c, with a norm before W under Sub-LN.

    Raises:
        ConfigError: a size below 1, or an unknown activation.
    """

    hidden: int  # size between the two matrices
    activation: str = "gelu"  # by name: models/activations.py
    bias: bool = True  # whether the matrices have biases
    inner: Norm | None = None  # the norm before W; None: what the residual scheme has there
    precision: Blockwise | None = None  # of products, if these are experts; None: as elsewhere

    def __post_init__(self) -> None:
        _check(self)

    def build(self, dim: int, rngs: nnx.Rngs, style: Style) -> "FeedForward":
        style = style if self.inner is None else replace(style, inner=self.inner)
        return FeedForward(self, dim, rngs, style)


@dataclass(frozen=True)
class Clamp:
    """Of a gate g and values u, bounded both: g σ(gain · g) ⊙ (u + 1), as gpt-oss has it.

    g is at most `limit`, u within ±`limit`. Source: OpenAI 2025, arXiv 2508.10925.

    Raises:
        ConfigError: a number that is not above 0.
    """

    limit: float = 7.0  # of the gate from above, of values on both sides
    gain: float = 1.702  # within the sigmoid

    def __post_init__(self) -> None:
        for name in ("limit", "gain"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Clamp.{name} must be above 0, not {getattr(self, name)}")

    def __call__(
        self, gate: Float[Array, "*B F"], up: Float[Array, "*B F"]
    ) -> Float[Array, "*B F"]:
        """The two together, computed in float32."""
        g = jnp.minimum(gate.astype(jnp.float32), self.limit)
        u = jnp.clip(up.astype(jnp.float32), -self.limit, self.limit)
        return (g * jax.nn.sigmoid(self.gain * g) * (u + 1)).astype(up.dtype)


@dataclass(frozen=True)
class GLU:
    """(f(x G) ⊙ x U) W, with a norm before W under Sub-LN. Source: Shazeer 2020, 2002.05202.

    Raises:
        ConfigError: a size below 1, or an unknown activation.
    """

    hidden: int  # size of the gate and of the values
    activation: str = "silu"  # of the gate, by name: models/activations.py
    bias: bool = False  # whether the matrices have biases
    clamp: Clamp | None = None  # how gate and values are bounded, and meet then; None: not
    precision: Blockwise | None = None  # of products, if these are experts; None: as elsewhere

    def __post_init__(self) -> None:
        _check(self)
        if self.clamp is not None and self.activation != "silu":
            raise ConfigError(f"GLU.clamp goes with activation='silu', not {self.activation!r}")

    def build(self, dim: int, rngs: nnx.Rngs, style: Style) -> "FeedForward":
        return FeedForward(self, dim, rngs, style, gated=True)


class FeedForward(nnx.Module):
    """What `MLP` and `GLU` build."""

    def __init__(self, c: MLP | GLU, dim: int, rngs: nnx.Rngs, style: Style, gated: bool = False):
        self.activation, self.drop, self.precision = c.activation, style.drop, c.precision
        self.clamp = c.clamp if isinstance(c, GLU) else None
        wide, narrow = dict(embed=dim, mlp=c.hidden), dict(mlp=c.hidden, embed=dim)
        make = lambda sizes, gain: Linear(sizes, rngs, style.scheme, gain, c.bias)
        # Of a gated layer the gain is the activated side's: the other only multiplies it.
        self.gate = make(wide, style.gain) if gated else None
        self.up, self.down = make(wide, 1.0 if gated else style.gain), make(narrow, style.gain)
        self.norm = style.inner.build(c.hidden) if style.inner else None

    def __call__(
        self, x: Float[Array, "B T D"], context: Any
    ) -> tuple[Float[Array, "B T D"], Reports]:
        if self.precision is not None:
            raise ConfigError(f"only experts, of a MoE, can have precision={self.precision}")
        y = constrain(self.up(x), "batch", "length", "mlp")
        if self.gate is None:
            y = activate(self.activation, y)
        else:
            y = self.gated(constrain(self.gate(x), "batch", "length", "mlp"), y)
        y = dropout(y, self.drop.activation, stream(context.key, "activation"))
        y = y if self.norm is None else self.norm(y)
        return dropout(self.down(y), self.drop.units, stream(context.key, "feed")), {}

    def gated(self, gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
        """Gate and values together."""
        if self.clamp is not None:
            return self.clamp(gate, up)
        return activate(self.activation, gate) * up


class Apart(NamedTuple):
    """What layers report, what they want small, summed, and what their experts had to do."""

    reports: Reports
    penalty: Any
    loads: Loads


def apart(reports: Reports) -> Apart:
    """The reports of all layers, told apart by what they are for."""
    loads = {n.removeprefix(PREFIX): v for n, v in reports.items() if n.startswith(PREFIX)}
    penalty = reports.get("penalty")
    total = 0.0 if penalty is None else penalty.astype(jnp.float32).sum()
    mine = lambda name: name != "penalty" and not name.startswith(PREFIX)
    return Apart({name: v for name, v in reports.items() if mine(name)}, total, loads)


def _check(c: MLP | GLU) -> None:
    if c.hidden < 1:
        raise ConfigError(f"hidden must be at least 1, not {c.hidden}")
    check_activation(c.activation)
