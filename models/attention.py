"""Self-attention with grouped heads, rotary positions and an optional cache."""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.mesh import constrain
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
        q, k, v = (project("btd,dnh->btnh", x, w[...]) for w in (self.q, self.k, self.v))
        q = constrain(rope(q, context.positions, self.base), "batch", "length", "heads", "head")
        k = rope(k, context.positions, self.base)
        if cache is None:
            seen = (context.positions, context.positions)
            segments = None if context.segments is None else (context.segments, context.segments)
        else:
            cache = cache.write(k, v, context.positions)
            k, v = cache.k.astype(x.dtype), cache.v.astype(x.dtype)
            slots = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
            seen, segments = (context.positions, slots), None
        # "keys" is whole by default: each part of a split sequence sees all keys.
        k, v = (constrain(a, "batch", "keys", "kv_heads", "head") for a in (k, v))
        out = attention(q, k, v, self.mask, positions=seen, segments=segments)
        return project("btnh,nhd->btd", out, self.o[...]), cache
