"""Blocks of the Transformer: attention, cross-attention where there is a source, feed-forward."""

# B batch, T length, D model size.

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.mesh import constrain
from jscale.models.attention import Heads
from jscale.models.decoder import KeysValues
from jscale.models.draws import drop_path, stream
from jscale.models.feed import Feed, Reports, Style
from jscale.models.norms import Norm
from jscale.models.positions import Rotary
from jscale.models.residual import Residual, Stage
from jscale.models.transformer.attend import CrossAttend, Scene, SelfAttend
from jscale.models.transformer.pattern import Attends
from jscale.pallas_kernels.attention import CAUSAL, FULL


@dataclass(frozen=True)
class Parts:
    """What blocks are made of."""

    size: Heads
    stage: Stage
    residual: Residual
    norm: Norm
    style: Style
    rotary: Rotary | None
    bias: bool
    attends: Attends


class State(NamedTuple):
    """What each layer has of its own: its caches, and the rate at which its branches are left out.

    `source` holds the keys and values of what a decoder reads besides its own tokens.
    """

    own: KeysValues | None = None
    source: KeysValues | None = None
    rate: Float[Array, "*layers"] | None = None


class Block(nnx.Module):
    """One layer: each branch with its norm, before it or after the sum."""

    def __init__(self, c: Parts, feed: Feed, rngs: nnx.Rngs):
        self.before, self.alpha = c.residual.before, c.residual.alpha(c.stage)
        causal, dim = c.stage.decodes, c.size.dim
        self.attend_norm = c.norm.build(dim)
        mask = CAUSAL if causal else FULL
        self.attend = SelfAttend(c.size, rngs, c.style, c.bias, mask, c.rotary, c.attends)
        reads = causal and c.stage.both
        self.cross_norm = c.norm.build(dim) if reads else None
        # Cross-attention has no norm within, under Sub-LN either.
        style = replace(c.style, inner=None, gain=c.residual.cross(c.stage))
        self.cross = CrossAttend(c.size, rngs, style, c.bias) if reads else None
        self.feed_norm, self.feed = c.norm.build(dim), feed.build(dim, rngs, c.style)

    def __call__(
        self, x: Float[Array, "B T D"], scene: Scene, state: State
    ) -> tuple[Float[Array, "B T D"], tuple[Reports, KeysValues | None]]:
        add = lambda x, norm, name, branch: self._add(x, norm, branch, state.rate, scene, name)
        x, own = add(x, self.attend_norm, "attend", lambda y: self.attend(y, scene, state.own))
        if (cross := self.cross) is not None:
            branch = lambda y: (cross(y, scene, state.source), None)
            x, _ = add(x, self.cross_norm, "cross", branch)
        x, reports = add(x, self.feed_norm, "feed", lambda y: self.feed(y, scene.context))
        return x, (reports, own)

    def _add(
        self, x: Array, norm: Any, branch: Callable[..., Any], rate: Any, scene: Scene, name: str
    ) -> tuple[Array, Any]:
        """α x + the branch, and what else the branch gives."""
        with jax.named_scope(name):
            y, more = branch(norm(x) if self.before else x)
            if rate is not None:
                y = drop_path(y, rate, stream(scene.key, f"{name}-path"))
            x = x + y if self.alpha == 1.0 else jnp.asarray(self.alpha, x.dtype) * x + y
            x = x if self.before else norm(x)
            return constrain(x, "batch", "length", "embed"), more
