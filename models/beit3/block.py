"""Blocks of BEiT-3: attention among all tokens, feed-forwards of their own for each kind."""

# B batch, P image tokens, T text tokens, S all tokens, D model size.

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.mesh import constrain
from jscale.models.beit3.ways import Halves, Ways
from jscale.models.draws import drop_path, stream
from jscale.models.feed import Feed
from jscale.models.transformer.attend import Scene, SelfAttend
from jscale.models.transformer.block import Parts
from jscale.pallas_kernels.attention import FULL

NAMES = Halves("image", "text")


def keys(key: Any) -> Halves:
    """A key for what each half draws."""
    return NAMES.map(lambda name: stream(key, name))


class Attend(Ways):
    """Projections in two copies around the attention of all tokens to all."""

    def __call__(self, halves: Halves, scene: Scene) -> Halves:
        project = lambda x, layer: (layer.queries(x), *layer.keys_values(x))
        q, k, v = halves.map(project, self.both).joined
        either = self.image  # what is between the projections has no weights
        if either.rotary is not None:
            q, k = (either.rotary.turn(a, scene.positions) for a in (q, k))
        q = constrain(q, "batch", "length", "heads", "head")
        out = halves.apart(either.rows(q, k, v, scene))
        finish = lambda heads, layer, key: layer.finish(heads, key)
        return out.map(finish, self.both, keys(stream(scene.key, "attend")))


class Block(nnx.Module):
    """One layer: each branch with its norm, before it or after the sum."""

    def __init__(self, c: Parts, feed: Feed, rngs: nnx.Rngs):
        self.before, self.alpha = c.residual.before, c.residual.alpha(c.stage)
        dim = c.size.dim
        attend = (c.size, rngs, c.style, c.bias, FULL, c.rotary, c.attends)
        self.attend_norm = Ways(lambda: c.norm.build(dim))
        self.attend = Attend(lambda: SelfAttend(*attend))
        self.feed_norm = Ways(lambda: c.norm.build(dim))
        self.feed = Ways(lambda: feed.build(dim, rngs, c.style))

    def __call__(
        self, x: Halves, scene: Scene, rate: Float[Array, ""] | None
    ) -> tuple[Halves, None]:
        """The new hidden states; `rate` is that at which a branch is left out."""

        def drop(y: Array, name: str) -> Array:
            return y if rate is None else drop_path(y, rate, stream(scene.key, f"{name}-path"))

        def add(x: Halves, norm: Ways, name: str, branch: Callable[[Halves], Halves]) -> Halves:
            with jax.named_scope(name):
                y = branch(norm(x) if self.before else x)
                y = y.map(lambda y: drop(y, name))  # whole rows: both halves alike
                x = x.map(self._sum, y)
                return x if self.before else norm(x)

        x = add(x, self.attend_norm, "attend", lambda y: self.attend(y, scene))
        return add(x, self.feed_norm, "feed", lambda y: self._fed(y, scene)), None

    def _fed(self, y: Halves, scene: Scene) -> Halves:
        feed = lambda y, layer, key: layer(y, scene.context._replace(key=key))[0]
        return y.map(feed, self.feed.both, keys(scene.key))

    def _sum(self, x: Float[Array, "B P D"], y: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        x = x + y if self.alpha == 1.0 else jnp.asarray(self.alpha, x.dtype) * x + y
        return constrain(x, "batch", "length", "embed")
