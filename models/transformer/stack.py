"""A stack of blocks over embedded tokens: what encoders and decoders have in common."""

# B batch, T length, S slots of a cache or source length, D model size.

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.mesh import Chosen, constrain
from jscale.models.decoder import KeysValues, places_of
from jscale.models.draws import dropout, stream
from jscale.models.layers import Embed, Stack
from jscale.models.moe import feeds_of
from jscale.models.residual import Stage
from jscale.models.sequence import Order, exchange_of
from jscale.models.transformer.attend import Scene, Source
from jscale.models.transformer.block import Block, State
from jscale.models.transformer.config import Body
from jscale.models.turns import unfolded
from jscale.pallas_kernels.attention import CAUSAL, PLAIN, Scores


class Tower(nnx.Module):
    """Embeddings with their positions, blocks, and the last norm."""

    def __init__(self, c: Body, stage: Stage, rngs: nnx.Rngs):
        parts, feeds = c.parts(stage), feeds_of(c.feed)
        self.stage, self.size = stage, parts.size
        self.even = c.attends.even
        self.scale, self.drop = math.sqrt(c.dim) if c.embedding.scaled else 1.0, c.drop
        scheme = parts.style.scheme
        self.places = nnx.List([p.build(c.dim, rngs, scheme) for p in c.embedded])
        self.biases = nnx.List([p.build(c.heads, rngs, scheme) for p in c.biased])
        reads = stage.both and stage.decodes
        self.cross = nnx.List([p.build(c.heads, rngs, scheme) for p in c.biased if reads])
        self.embed_norm = c.norm.build(c.dim) if c.embedding.norm else None
        makes = tuple(lambda rngs, feed=feed: Block(parts, feed, rngs) for feed in feeds)
        self.blocks = Stack(makes, stage.layers, rngs, c.remat)
        ends = c.residual.before and c.last_norm
        self.norm = c.norm.build(c.dim) if ends else None

    def __call__(
        self,
        embed: Embed,
        tokens: Int[Array, "B T"],
        scene: Scene,
        cache: KeysValues | None = None,
        source: KeysValues | None = None,
    ) -> tuple[Float[Array, "B T D"], dict[str, Any], KeysValues | None]:
        """Hidden states, reports of blocks, and the cache.

        `source` holds, for each layer, keys and values of what a decoder reads besides.
        """
        order = self._order(tokens.shape[1], cache)
        tokens, (*where, _, numbers) = order.apply(tokens, scene.context)
        positions, segments, places = where
        scene = scene._replace(
            positions=positions, segments=segments, places=places, tokens=numbers
        )
        x = self._embedded(embed(tokens), scene)
        scene = self._scored(scene, cache, source)
        state = State(cache, source, self.drop.paths(self.stage.layers))
        x, (reports, cache) = self.blocks(x, scene, state)
        x = x if self.norm is None else self.norm(x)
        return order.undo(x), reports, cache

    def exchange(self, length: int) -> Chosen | None:
        """What attention exchanges under the current layout; None where devices have whole rows, or
        where it is left to the partitioner."""
        return exchange_of(length, self.size.heads, self.size.heads) if self.even else None

    def empty(self, batch: int, length: int, dtype: DTypeLike) -> KeysValues:
        """An empty cache for `length` positions."""
        shape = (batch, length, self.size.heads, self.size.head)
        return KeysValues.empty(self.stage.layers, shape, dtype)

    def sources(self, hidden: Float[Array, "B S D"]) -> KeysValues:
        """Keys and values of an encoder's hidden states, for each layer of a decoder."""

        def of(block: Any) -> KeysValues:
            if self.blocks.turns == 1:
                return KeysValues(*block.cross.keys_values(hidden))
            each = [layer.cross.keys_values(hidden) for layer in block.layers]
            return KeysValues(*(jnp.stack(part) for part in zip(*each, strict=True)))

        # A loop rather than vmap: the projections are split over devices as they are in the step.
        found = jax.lax.scan(lambda _, block: (None, of(block)), None, self.blocks.block)[1]
        return unfolded(found, self.blocks.turns)

    def _order(self, length: int, cache: KeysValues | None) -> Order:
        """Zig-zag over devices, where attention lets tokens stand in any order."""
        plain = not self.biases and cache is None and self.stage.decodes and not self.stage.both
        if not plain:
            return Order()
        return Order.under(CAUSAL, length, self.exchange(length))

    def _embedded(self, x: Array, scene: Scene) -> Float[Array, "B T D"]:
        x = x if self.scale == 1.0 else x * jnp.asarray(self.scale, x.dtype)
        for place in self.places:
            x = x + place(scene.positions).astype(x.dtype)
        x = x if self.embed_norm is None else self.embed_norm(x)
        x = dropout(x, self.drop.units, stream(scene.key, "embed"))
        return constrain(x, "batch", "length", "embed")

    def _scored(self, scene: Scene, cache: Any, source: Any) -> Scene:
        """The scene with what positions add to scores: once, for all layers."""
        row = lambda n: jnp.arange(n)[None]
        if cache is None:  # within a segment, positions grow as places do
            queries = keys = row(scene.positions.shape[1])
        else:
            queries, keys = scene.positions, row(cache.k.shape[2])
            keys = jnp.broadcast_to(keys, (queries.shape[0], keys.shape[1]))
        scores: Scores = PLAIN
        for bias in self.biases:
            scores = bias(scores, queries, keys)
        scene = scene._replace(scores=scores)
        if scene.source is None or not self.cross:
            return scene
        hidden = scene.source.hidden
        reads = source.k.shape[2] if hidden is None else hidden.shape[1]
        keys = scene.source.order(scene.positions.shape[0], reads)
        scores = PLAIN
        for bias in self.cross:
            scores = bias(scores, scene.positions, keys)
        return scene._replace(source=scene.source._replace(scores=scores))


def scene_of(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    key: Any = None,
    source: Source | None = None,
) -> Scene:
    """The scene of a row of tokens: positions count from where segments begin."""
    if positions is None and segments is not None:
        positions = places_of(segments)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return Scene(positions, segments, key=key, source=source, tokens=tokens)
