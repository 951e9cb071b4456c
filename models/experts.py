"""The feed-forwards of a mixture, computed on rows that stand in the order of their experts."""

# M rows, G experts of a device, D model size, F hidden size of a device, X, Y sizes of rows.

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import Axes
from jscale.models.activations import activate
from jscale.models.blockwise import Blockwise
from jscale.models.draws import dropout
from jscale.models.layers import RMSNorm
from jscale.models.norms import LayerNorm
from jscale.pallas_kernels.dispatch import Received
from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul.reference import group_of
from jscale.pallas_kernels.grouped_matmul.rows import taken

WIDE, NARROW = Axes("experts", None, "mlp"), Axes("experts", "mlp", None)
HIDDEN, WHOLE = Axes("experts", "mlp"), Axes("experts", None)

Held = dict[str, Any]  # weights of all experts by name, with a leading axis for them


class Rows(NamedTuple):
    """What a device's experts work on, and the mesh axes over which their hidden size is split."""

    received: Received
    split: tuple[str, ...]
    precision: Blockwise | None = None  # of products; None: that of the rows

    @property
    def expert(self) -> Int[Array, " M"]:
        """The expert of each row; G where there is none."""
        return group_of(self.received.sizes, self.received.rows.shape[0])

    def times(
        self,
        x: Float[Array, "R X"],
        *weights: Float[Array, "G X Y"],
        rows: Int[Array, " M"] | None = None,
    ) -> tuple[Float[Array, "M Y"], ...]:
        """Each row times its expert's matrix, of one stack of these or of several."""
        sizes = self.received.sizes
        if self.precision is not None:
            return self.precision.products(x, weights, sizes, rows)
        return tuple(grouped_matmul(x, w, sizes, rows=rows) for w in weights)

    def own(self, vectors: Float[Array, "G Y"], like: Float[Array, "M Y"]) -> Float[Array, "M Y"]:
        """For each row its expert's vector."""
        return taken(vectors, self.expert).astype(like.dtype)

    def mean(self, x: Float[Array, "M F"]) -> Float[Array, "M 1"]:
        """The mean over the whole hidden size."""
        mean = x.mean(-1, keepdims=True)
        return lax.pmean(mean, self.split) if self.split else mean


def held(expert: Any) -> tuple[Held, dict[str, Axes]]:
    """The weights of stacked `FeedForward`s, and how devices share them while they compute.

    Raises:
        ConfigError: their norm is none that is known here.
    """
    out: dict[str, tuple[Any, Axes]] = {}
    for name, wide in (("gate", True), ("up", True), ("down", False)):
        linear = getattr(expert, name)
        if linear is None:
            continue
        out[name] = linear.kernel[...], WIDE if wide else NARROW
        if linear.bias is not None:
            out[f"{name}_bias"] = linear.bias[...], HIDDEN if wide else WHOLE
    if expert.norm is not None:
        if not isinstance(expert.norm, LayerNorm | RMSNorm):
            raise ConfigError(f"experts cannot have {type(expert.norm).__name__} as inner norm")
        out["scale"] = expert.norm.scale[...], HIDDEN
        if isinstance(expert.norm, LayerNorm):
            out["shift"] = expert.norm.bias[...], HIDDEN
    return {name: w for name, (w, _) in out.items()}, {
        name: axes for name, (_, axes) in out.items()
    }


def run(expert: Any, w: Held, rows: Rows, key: Any) -> Float[Array, "M D"]:
    """The results of the rows. Where the hidden size is split, they are to be summed."""
    how, received = expert.precision, rows.received
    rows = rows._replace(precision=how)
    names = ("gate", "up") if "gate" in w else ("up",)
    wide = rows.times(received.x, *(w[name] for name in names), rows=received.rows)
    wide = [_plus(y, name, w, rows) for name, y in zip(names, wide, strict=True)]
    meet = expert.gated if "gate" in w else partial(activate, expert.activation)
    y = meet(*wide) if how is None else how.keeping(meet, *wide)
    y = dropout(y, expert.drop.activation, key)
    y = y if expert.norm is None else _normalised(y, expert.norm.eps, w, rows)
    (out,) = rows.times(y, w["down"])
    if "down_bias" not in w:
        return out
    bias = rows.own(w["down_bias"], out)
    return out + (jnp.where(lax.axis_index(rows.split) == 0, bias, 0) if rows.split else bias)


def _plus(y: Float[Array, "M F"], name: str, w: Held, rows: Rows) -> Float[Array, "M F"]:
    bias = w.get(f"{name}_bias")
    return y if bias is None else y + rows.own(bias, y)


def _normalised(y: Float[Array, "M F"], eps: float, w: Held, rows: Rows) -> Float[Array, "M F"]:
    """As `LayerNorm` (with a shift) and `RMSNorm` do it, with each expert's own scale."""
    x = y.astype(jnp.float32)
    x = x - rows.mean(x) if "shift" in w else x
    x *= lax.rsqrt(rows.mean(jnp.square(x)) + eps)
    x *= rows.own(w["scale"], x)
    return (x + rows.own(w["shift"], x) if "shift" in w else x).astype(y.dtype)
