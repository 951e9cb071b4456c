"""Self-attention with grouped heads, rotary positions and an optional cache."""

# B batch, T length, D model size, N heads, K key/value heads, H head size, V value size.

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.mesh import Axes, alone, constrain, per_shard, split_over
from jscale.models.decoder import Context, KeysValues
from jscale.models.layers import constant, project, project_at_once, weight
from jscale.models.rope import Rotation
from jscale.models.sequence import ROWS, exchange_of, kernel_of, ways
from jscale.pallas_kernels.attention import CAUSAL, PLAIN, Mask, Places, Scores, attention
from jscale.pallas_kernels.context_attention import context_attention


@dataclass(frozen=True)
class Heads:
    """The sizes of an attention layer: model size, query heads, key/value heads, head size."""

    dim: int
    heads: int
    kv_heads: int
    head: int


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions (a number is their base).

    `biases` names those of the projections that add one, as "qkv".
    """

    def __init__(
        self,
        size: Heads,
        rotary: Rotation | float,
        rngs: nnx.Rngs,
        mask: Mask = CAUSAL,
        biases: str = "",
        scores: Scores = PLAIN,
    ):
        self.rotary = rotary if isinstance(rotary, Rotation) else Rotation(rotary)
        self.mask, self.scores = mask, scores
        self.q = weight(rngs, size.dim, embed=size.dim, heads=size.heads, head=size.head)
        self.k = weight(rngs, size.dim, embed=size.dim, kv_heads=size.kv_heads, head=size.head)
        self.v = weight(rngs, size.dim, embed=size.dim, kv_heads=size.kv_heads, head=size.head)
        self.o = weight(
            rngs, size.heads * size.head, heads=size.heads, head=size.head, embed=size.dim
        )
        others = {"q": {"heads": size.heads}, "k": {"kv_heads": size.kv_heads}}
        others |= {"v": others["k"]}
        for name in biases:
            shape = {"scale": size.dim} if name == "o" else {**others[name], "head": size.head}
            setattr(self, f"{name}_bias", constant(0.0, **shape))

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysValues | None = None
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        q, k, v = self.project(x)
        q, k = self.turn(q, k, context.positions)
        q = constrain(q, "batch", "length", "heads", "head")
        if cache is None:
            places = self.places(context)
            out = attend(q, k, v, self.mask, context.segments, places, self.scoring())
        else:
            scores = self.scoring()
            out, cache = attend_cached(q, k, v, self.mask, context.positions, cache, scores)
        return self._biased("o", project("btnh,nhd->btd", out, self.o[...])), cache

    def turn(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
        """Queries and keys as they meet: rotated."""
        return self.rotary(q, positions), self.rotary(k, positions)

    def scoring(self) -> Scores:
        """How queries and keys score."""
        return self.scores

    def places(self, context: Context) -> Int[Array, "B T"] | None:
        """Where tokens stand for the mask; None: as they come."""
        return context.places

    def project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values."""
        q, k, v = self._products(x)
        return self._biased("q", q), self._biased("k", k), self._biased("v", v)

    def _products(self, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
        q, k, v = (w[...] for w in (self.q, self.k, self.v))
        if x.shape[1] == 1 or not alone():
            one = lambda w: project("btd,dnh->btnh", x, w)
            return one(q), one(k), one(v)
        # One product for all three: for many tokens that saves more than putting them together
        # costs. Not on a mesh: of weights put together, the compiler for TPUs gathers what is
        # split over fsdp twice, and sums the gradient whole instead of scattering it.
        (_, N, H), K = q.shape, k.shape[1]
        y = project_at_once(x, q, k, v).reshape(*x.shape[:2], N + 2 * K, H)
        q, k, v = jnp.split(y, (N, N + K), 2)
        return q, k, v

    def _biased(self, name: str, y: Float[Array, "..."]) -> Float[Array, "..."]:
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...].astype(y.dtype)


KEYS = Axes("batch", "keys", "kv_heads", "head")
OWN, OTHERS = Axes(*ROWS, "heads", "head"), Axes(*ROWS, "kv_heads", "head")


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask,
    segments: Int[Array, "B T"] | None,
    places: Int[Array, "B T"] | None = None,
    scores: Scores = PLAIN,
) -> Float[Array, "B T N V"]:
    """Attention of whole rows to themselves, on each device its rows, heads and queries.

    What comes before what is read off the places in the row, which positions follow. By default
    these are 0, 1, …: what the mask hides is then known while tracing, and costs nothing. Devices
    that share a row exchange what the rules say; a bias of the scores is left to the partitioner.
    """
    pair = lambda x: None if x is None else (x, x)
    order, seen = pair(places), pair(segments)
    (T, N), K = q.shape[1:3], k.shape[2]
    heads = split_over(*OWN[:3])
    unexchanged = scores.bias is not None and split_over(*ROWS)
    if split_over(*KEYS[:2]) or not apart(N, K) or unexchanged:
        # The rules leave it to the partitioner, or heads need key/value heads that lie elsewhere,
        # or scores have a bias, which no exchange has parts of.
        k, v = (constrain(x, *KEYS) for x in (k, v))
        return attention(q, k, v, mask, scores=scores, positions=order, segments=seen)
    chosen = exchange_of(T, N, K)

    def part(q: Array, k: Array, v: Array, order: Any, seen: Any, of_scores: Any) -> Array:
        mine = replace(scores, **of_scores)
        if k.shape[2] == K and heads:  # these are whole: of them, the ones that the queries need
            needed = max(1, q.shape[2] * K // N)
            first = lax.axis_index(heads) * q.shape[2] * K // N
            k, v = (lax.dynamic_slice_in_dim(x, first, needed, 2) for x in (k, v))
        if chosen is None:
            return attention(q, k, v, mask, scores=mine, positions=order, segments=seen)
        exchange = kernel_of(chosen.exchange, chosen.shared.axes)
        return context_attention(q, k, v, mask, exchange, scores=mine, places=Places(order, seen))

    given, axes = parts_of(scores)
    inputs = OWN, OTHERS, OTHERS, (ROWS, ROWS), (ROWS, ROWS), axes
    return per_shard(part, q, k, v, order, seen, given, inputs=inputs, outputs=OWN)


def attend_cached(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask,
    positions: Int[Array, "B T"],
    cache: KeysValues,
    scores: Scores = PLAIN,
) -> tuple[Float[Array, "B T N V"], KeysValues]:
    """Attention of new tokens to all that a cache holds and to themselves, and the new cache."""
    cache = cache.write(k, v, positions)
    return attend_slots(q, cache.k, cache.v, mask, positions, scores), cache


def attend_slots(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    positions: Int[Array, "B T"],
    scores: Scores = PLAIN,
) -> Float[Array, "B T N V"]:
    """Attention of tokens at these positions to keys and values in the slots of theirs."""
    # "keys" is whole by default: each part of a split sequence sees all of a cache.
    k, v = (constrain(x.astype(q.dtype), *KEYS) for x in (k, v))
    slots = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
    return attention(q, k, v, mask, scores=scores, positions=(positions, slots))


def parts_of(scores: Scores) -> tuple[dict[str, Array], dict[str, Axes]]:
    """The arrays of scores by name, and their logical axes."""
    given = {"bias": scores.bias, "slopes": scores.slopes, "sinks": scores.sinks}
    given = {name: x for name, x in given.items() if x is not None}
    names = ("batch", "heads", None, None)
    axes = {name: Axes("heads") for name in given}
    if scores.bias is not None:
        sizes = zip(names, scores.bias.shape, strict=True)
        axes["bias"] = Axes(*(name if size > 1 else None for name, size in sizes))
    return given, axes


def apart(heads: int, kv_heads: int) -> bool:
    """Whether each device has, or can take of whole ones, the key/value heads of its own heads."""
    split, others = split_over(*OWN[:3]), split_over(*OTHERS[:3])
    here, group = heads // ways(*OWN[:3]), heads // kv_heads
    return split == others or (not others and (here % group == 0 or group % here == 0))
