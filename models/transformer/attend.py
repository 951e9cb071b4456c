"""Attention as TorchScale has it: biases, a norm before the output, positions as values."""

# B batch, T length, S source length, D model size, N heads, H head size.

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.mesh import constrain
from jscale.models.attention import Heads
from jscale.models.decoder import Context, KeysValues
from jscale.models.draws import dropout, stream
from jscale.models.feed import Style
from jscale.models.initial import Fans, named
from jscale.models.layers import project
from jscale.models.positions import Rotary
from jscale.models.transformer.pattern import Attends
from jscale.pallas_kernels.attention import (
    FULL,
    PLAIN,
    Mask,
    Places,
    Scores,
    attention,
    attention_with_lse,
    merge,
)


class Source(NamedTuple):
    """What a decoder reads besides its own tokens: an encoder's hidden states and their segments.

    `scores` are of cross-attention. `hidden` is None where a cache holds its keys and values.
    `positions` are those of its tokens; None: their places in the row.
    """

    hidden: Float[Array, "B S D"] | None
    segments: Int[Array, "B S"] | None = None
    scores: Scores = PLAIN
    positions: Int[Array, "B S"] | None = None

    def order(self, batch: int, length: int) -> Int[Array, "B S"]:
        """Where its tokens stand."""
        if self.positions is None:
            return jnp.broadcast_to(jnp.arange(length), (batch, length))
        return self.positions


class Scene(NamedTuple):
    """What all blocks share: `Context`, scores by position, and what a decoder reads besides."""

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    places: Int[Array, "B T"] | None = None
    key: Any = None  # a PRNGKeyArray or None
    scores: Scores = PLAIN
    source: Source | None = None
    tokens: Int[Array, "B T"] | None = None  # as numbers, where they are any

    @property
    def context(self) -> Context:
        """What other networks' layers know."""
        return Context(self.positions, self.segments, self.places, self.key, self.tokens)


class Heading(nnx.Module):
    """The four projections of an attention layer, and the norm that Sub-LN puts before the last."""

    def __init__(self, size: Heads, rngs: nnx.Rngs, style: Style, bias: bool):
        self.drop, gain = style.drop, style.gain
        make = lambda gain, *axes: _weights(size, rngs, style, bias, gain, axes)
        self.q, self.q_bias = make(1.0, "heads", "head")
        self.k, self.k_bias = make(1.0, "heads", "head")
        self.v, self.v_bias = make(gain, "heads", "head")
        self.o, self.o_bias = make(gain, "embed")
        self.norm = style.inner.build(size.heads * size.head) if style.inner else None

    def queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        return self._project(x, self.q, self.q_bias)

    def keys_values(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        return self._project(x, self.k, self.k_bias), self._project(x, self.v, self.v_bias)

    def _project(self, x: Array, w: nnx.Param, b: nnx.Param | None) -> Array:
        y = project("btd,dnh->btnh", x, w[...])
        return y if b is None else y + b[...].astype(y.dtype)

    def finish(self, heads: Float[Array, "B T N H"], key: Any) -> Float[Array, "B T D"]:
        """The heads normalised over all of them, projected, and dropped from."""
        if self.norm is not None:
            B, T, N, H = heads.shape
            heads = self.norm(heads.reshape(B, T, N * H)).reshape(heads.shape)
            heads = constrain(heads, "batch", "length", "heads", "head")
        y = project("btnh,nhd->btd", heads, self.o[...])
        y = y if self.o_bias is None else y + self.o_bias[...].astype(y.dtype)
        return dropout(y, self.drop.units, key)


def _weights(
    size: Heads, rngs: nnx.Rngs, style: Style, bias: bool, gain: float, axes: tuple[str, ...]
) -> tuple[nnx.Param, nnx.Param | None]:
    """A matrix to heads, or from heads to the model's size, and its bias."""
    wide = size.heads * size.head
    heads = (size.heads, size.head)
    if axes == ("embed",):
        fans, shape, names = Fans(wide, size.dim), (*heads, size.dim), ("heads", "head", "embed")
        out, out_names = (size.dim,), ("scale",)
    else:
        fans, shape, names = Fans(size.dim, wide), (size.dim, *heads), ("embed", "heads", "head")
        out, out_names = heads, ("heads", "head")
    w = named(style.scheme.matrix(rngs.params(), shape, fans, gain), *names)
    if not bias:
        return w, None
    return w, named(style.scheme.bias(rngs.params(), out, fans, gain), *out_names)


class SelfAttend(Heading):
    """Attention of tokens to tokens of their own segment, under a mask."""

    def __init__(
        self,
        size: Heads,
        rngs: nnx.Rngs,
        style: Style,
        bias: bool,
        mask: Mask,
        rotary: Rotary | None,
        attends: Attends,
    ):
        super().__init__(size, rngs, style, bias)
        self.mask, self.rotary, self.attends = mask, rotary, attends

    def __call__(
        self, x: Float[Array, "B T D"], scene: Scene, cache: KeysValues | None
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        q, (k, v) = self.queries(x), self.keys_values(x)
        if self.rotary is not None:
            q, k = (self.rotary.turn(a, scene.positions) for a in (q, k))
        q = constrain(q, "batch", "length", "heads", "head")
        if cache is None:
            out = self.rows(q, k, v, scene)
        else:
            cache = cache.write(k, v, scene.positions)
            out = self._cached(q, cache, scene)
        return self.finish(out, stream(scene.key, "attend")), cache

    def rows(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T N H"],
        v: Float[Array, "B T N H"],
        scene: Scene,
    ) -> Float[Array, "B T N H"]:
        """Attention of whole rows to themselves, queries and keys turned."""
        rate, block = self.drop.attention, None
        if self.rotary is not None:
            q, k = self.rotary.meet(q, k, scene.positions, scene.positions)
            block = self.rotary.block
        pair = lambda x: None if x is None else (x, x)
        if rate and scene.key is not None:
            order = scene.positions if scene.places is None else scene.places
            places = Places((order, order), pair(scene.segments))
            return dropped(q, k, v, self.mask, scene.scores, places, (rate, scene.key))
        if block is not None and q.shape[1] > 2 * block:
            return self._near(q, k, v, scene, Places(pair(scene.positions), pair(scene.segments)))
        return self.attends.rows(q, k, v, self.mask, scene.context, scene.scores)

    def _cached(self, q: Array, cache: KeysValues, scene: Scene) -> Float[Array, "B T N H"]:
        # "keys" is whole by default: each part of a split sequence sees all of a cache.
        lay = lambda a: constrain(a.astype(q.dtype), "batch", "keys", "heads", "head")
        k, v = lay(cache.k), lay(cache.v)
        if self.rotary is not None:
            slots = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
            q, k = self.rotary.meet(q, k, scene.positions, slots)
            if self.rotary.block is not None and k.shape[1] > 2 * self.rotary.block:
                return self._near(q, k, v, scene, Places((scene.positions, slots)))
        return self.attends.slots(q, k, v, self.mask, scene.positions, scene.scores)

    def _near(self, q: Array, k: Array, v: Array, scene: Scene, places: Places) -> Array:
        """Attention to keys of a query's own block and of the one before it."""
        assert self.rotary is not None and self.rotary.block is not None
        block, positions = self.rotary.block, places.positions
        assert positions is not None
        own = attention_with_lse(q, k, v, Mask(chunk=block), scene.scores, places)
        # The keys of the block before are in the query's own when a block further on.
        moved = places._replace(positions=(positions[0], positions[1] + block))
        before = Mask(causal=False, chunk=block)
        return merge(own, attention_with_lse(q, k, v, before, scene.scores, moved))[0]


class CrossAttend(Heading):
    """Attention of tokens to an encoder's hidden states."""

    def __call__(
        self, x: Float[Array, "B T D"], scene: Scene, cache: KeysValues | None
    ) -> Float[Array, "B T D"]:
        source = scene.source
        assert source is not None
        q = constrain(self.queries(x), "batch", "length", "heads", "head")
        if cache is None:
            assert source.hidden is not None
            cache = KeysValues(*self.keys_values(source.hidden))
        k, v = cache
        lay = lambda a: constrain(a.astype(q.dtype), "batch", "keys", "heads", "head")
        k, v = lay(k), lay(v)
        (B, T), S = q.shape[:2], k.shape[1]
        segments = None
        if source.segments is not None:
            mine = jnp.ones((B, T), jnp.int32) if scene.segments is None else scene.segments
            segments = (mine, source.segments)
        order = scene.positions, source.order(B, S)
        places, rate = Places(order, segments), self.drop.attention
        if rate and scene.key is not None:
            key = stream(scene.key, "cross-probabilities")
            out = dropped(q, k, v, FULL, source.scores, places, (rate, key))
        else:
            out = attention(
                *(q, k, v, FULL),
                scores=source.scores,
                positions=places.positions,
                segments=places.segments,
            )
        return self.finish(out, stream(scene.key, "cross"))


def dropped(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    mask: Mask,
    scores: Scores,
    places: Places,
    draw: tuple[float, Any],
) -> Float[Array, "B T N H"]:
    """Attention whose probabilities are dropped at a rate under a key: all of them are held."""
    (B, T, _, H), S = q.shape, k.shape[1]
    rate, key = draw
    logits = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    logits *= scores.of(H)
    queries, keys = places.whole(B, T, S)
    if scores.bias is not None:
        logits += scores.bias
    if scores.slopes is not None:
        away = jnp.abs(queries[:, :, None] - keys[:, None, :])[:, None]
        logits -= scores.slopes[:, None, None] * away.astype(jnp.float32)
    seen = mask.allows(queries, keys)
    if places.segments is not None:
        seen &= places.segments[0][:, :, None] == places.segments[1][:, None, :]
    logits = jnp.where(seen[:, None], logits, -1e30)
    probabilities = jnp.where(seen[:, None], jax.nn.softmax(logits, -1), 0.0)
    probabilities = dropout(probabilities, rate, stream(key, "probabilities"))
    return jnp.einsum("bnts,bsnh->btnh", probabilities.astype(v.dtype), v)
