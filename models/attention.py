"""Self-attention with grouped heads, rotary positions and an optional cache."""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.mesh import Axes, alone, constrain, per_shard, split_over
from jscale.models.decoder import Context, KeysValues
from jscale.models.layers import project, project_at_once, weight
from jscale.models.rope import rope
from jscale.models.sequence import ROWS, exchange_of, kernel_of, ways
from jscale.pallas_kernels.attention import CAUSAL, Mask, Places, attention
from jscale.pallas_kernels.context_attention import context_attention


@dataclass(frozen=True)
class Heads:
    """The sizes of an attention layer: model size, query heads, key/value heads, head size."""

    dim: int
    heads: int
    kv_heads: int
    head: int


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, size: Heads, base: float, rngs: nnx.Rngs, mask: Mask = CAUSAL):
        self.base, self.mask = base, mask
        self.q = weight(rngs, size.dim, embed=size.dim, heads=size.heads, head=size.head)
        self.k = weight(rngs, size.dim, embed=size.dim, kv_heads=size.kv_heads, head=size.head)
        self.v = weight(rngs, size.dim, embed=size.dim, kv_heads=size.kv_heads, head=size.head)
        self.o = weight(
            rngs, size.heads * size.head, heads=size.heads, head=size.head, embed=size.dim
        )

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysValues | None = None
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        q, k, v = self.project(x)
        q = constrain(rope(q, context.positions, self.base), "batch", "length", "heads", "head")
        k = rope(k, context.positions, self.base)
        if cache is None:
            out = attend(q, k, v, self.mask, context.segments, context.places)
        else:
            # "keys" is whole by default: each part of a split sequence sees all of a cache.
            lay = lambda a: constrain(a, "batch", "keys", "kv_heads", "head")
            cache = cache.write(k, v, context.positions)
            k, v = lay(cache.k.astype(x.dtype)), lay(cache.v.astype(x.dtype))
            slots = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
            out = attention(q, k, v, self.mask, positions=(context.positions, slots))
        return project("btnh,nhd->btd", out, self.o[...]), cache

    def project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values."""
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


KEYS = Axes("batch", "keys", "kv_heads", "head")
OWN, OTHERS = Axes(*ROWS, "heads", "head"), Axes(*ROWS, "kv_heads", "head")


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    segments: Int[Array, "B T"] | None,
    places: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of whole rows to themselves, on each device its rows, heads and queries.

    What comes before what is read off the places in the row, which positions follow. By default
    these are 0, 1, …: what the mask hides is then known while tracing, and costs nothing. Devices
    that share a row exchange what the rules say.
    """
    pair = lambda x: None if x is None else (x, x)
    order, seen = pair(places), pair(segments)
    (T, N), K = q.shape[1:3], k.shape[2]
    heads = split_over(*OWN[:3])
    if split_over(*KEYS[:2]) or not apart(N, K):
        # The rules leave it to the partitioner, or heads need key/value heads that lie elsewhere.
        k, v = (constrain(x, *KEYS) for x in (k, v))
        return attention(q, k, v, mask, positions=order, segments=seen)
    chosen = exchange_of(T, N, K)

    def part(q: Array, k: Array, v: Array, order: Any, seen: Any) -> Array:
        if k.shape[2] == K and heads:  # these are whole: of them, the ones that the queries need
            needed = max(1, q.shape[2] * K // N)
            first = lax.axis_index(heads) * q.shape[2] * K // N
            k, v = (lax.dynamic_slice_in_dim(x, first, needed, 2) for x in (k, v))
        if chosen is None:
            return attention(q, k, v, mask, positions=order, segments=seen)
        exchange = kernel_of(chosen.exchange, chosen.shared.axes)
        return context_attention(q, k, v, mask, exchange, places=Places(order, seen))

    inputs = OWN, OTHERS, OTHERS, (ROWS, ROWS), (ROWS, ROWS)
    return per_shard(part, q, k, v, order, seen, inputs=inputs, outputs=OWN)


def apart(heads: int, kv_heads: int) -> bool:
    """Whether each device has, or can take of whole ones, the key/value heads of its own heads."""
    split, others = split_over(*OWN[:3]), split_over(*OTHERS[:3])
    here, group = heads // ways(*OWN[:3]), heads // kv_heads
    return split == others or (not others and (here % group == 0 or group % here == 0))
