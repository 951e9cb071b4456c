"""Self-attention with grouped heads, rotary positions and an optional cache."""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.mesh import Axes, alone, constrain, per_shard, split_over
from jscale.models.decoder import Context, KeysValues
from jscale.models.layers import project, weight
from jscale.models.rope import rope
from jscale.pallas_kernels.attention import CAUSAL, Mask, attention


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
        # "keys" is whole by default: each part of a split sequence sees all keys.
        lay = lambda a: constrain(a, "batch", "keys", "kv_heads", "head")
        if cache is None:
            out = attend(q, lay(k), lay(v), self.mask, context.segments)
        else:
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
        N, K = q.shape[1], k.shape[1]
        y = project("btd,dnh->btnh", x, jnp.concatenate([q, k, v], 1))
        q, k, v = jnp.split(y, (N, N + K), 2)
        return q, k, v


ROWS, KEYS = Axes("batch", "length"), Axes("batch", "keys")


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """Attention of whole rows to themselves, on each device its rows, heads and queries.

    What comes before what is read off the places in the row, which positions follow; so what the
    mask hides is known while tracing, and costs nothing.
    """
    seen = None if segments is None else (segments, segments)
    if split_over(*KEYS) or split_over(*ROWS, "heads") != split_over(*KEYS, "kv_heads"):
        # A device's queries need keys, or key/value heads, that are not its own.
        return attention(q, k, v, mask, segments=seen)
    order = None
    if split_over(*ROWS):
        places = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
        order = places, places
    queries, others = Axes(*ROWS, "heads", "head"), Axes(*KEYS, "kv_heads", "head")
    return per_shard(
        lambda q, k, v, order, seen: attention(q, k, v, mask, positions=order, segments=seen),
        *(q, k, v, order, seen),
        inputs=(queries, others, others, (ROWS, KEYS), (ROWS, KEYS)),
        outputs=queries,
    )
