"""Differential Transformer: attention as the difference of two softmaxes, so that noise cancels.

Source: Ye et al. 2024, arXiv 2410.05258.
"""

# B batch, T length, D model size, N heads, K key/value heads, H head size, G queries of a key head.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jscale.mesh import Chosen, constrain
from jscale.models.attention import Heads, attend, attend_slots
from jscale.models.causal import Block, Causal, check_sizes, share
from jscale.models.decoder import Context, KeysValues
from jscale.models.layers import RMSNorm, SwiGLU, project, weight
from jscale.models.rope import rope
from jscale.models.sequence import exchange_of
from jscale.pallas_kernels.attention import CAUSAL


@dataclass(frozen=True)
class Differential:
    """The sizes of a Differential Transformer.

    A head has two queries and two keys of `head` and one value of 2 · `head`: with as many weights
    as a Llama of twice the heads.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # differential heads
    kv_heads: int  # pairs of keys with their value, each shared by heads / kv_heads heads
    hidden: int  # size inside SwiGLU
    head: int | None = None  # size of one query; None: dim / (2 · heads)
    rope: float = 10_000.0  # base of the rotary frequencies
    eps: float = 1e-5  # of the norms
    tied: bool = False  # whether embedding and head share one matrix
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_sizes(self, "hidden")

    @property
    def head_size(self) -> int:
        return share(self.dim, 2 * self.heads, self.head)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "Network":
        return Network(self, self.block, rngs, compute)

    def block(self, rngs: nnx.Rngs) -> Block:
        """One block, with random weights."""
        size = Heads(self.dim, self.heads, self.kv_heads, self.head_size)
        attend = DifferentialAttention(size, self.rope, self.eps, rngs)
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))


def first_difference(layers: int) -> Float[Array, " L"]:
    """λ_init = 0.8 − 0.6 exp(−0.3 l) of the layers l = 0, 1, …: deeper ones subtract more."""
    return 0.8 - 0.6 * jnp.exp(-0.3 * jnp.arange(layers, dtype=jnp.float32))


class DifferentialAttention(nnx.Module):
    """(softmax(q₁ k₁ᵀ) − λ softmax(q₂ k₂ᵀ)) v, each head normalised and times 1 − λ_init."""

    def __init__(self, size: Heads, base: float, eps: float, rngs: nnx.Rngs):
        D, N, K, H = size.dim, size.heads, size.kv_heads, size.head
        self.base, self.pairs = base, K
        # Query heads in the order (key head, first or second, query of it).
        self.q = weight(rngs, D, embed=D, heads=2 * N, head=H)
        self.k = weight(rngs, D, embed=D, kv_heads=2 * K, head=H)
        self.v = weight(rngs, D, embed=D, kv_heads=K, head=2 * H)
        self.o = weight(rngs, 2 * N * H, heads=N, head=2 * H, embed=D)
        # The queries' and keys' vectors of which λ is made, first and second.
        small = lambda: 0.1 * jax.random.normal(rngs.params(), (2, H))
        vectors = lambda: nnx.Param(small(), out_sharding=(None, "head"), eager_sharding=False)
        self.by_query, self.by_key = vectors(), vectors()
        self.norm = RMSNorm(2 * H, eps)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        state: tuple[KeysValues | None, Float[Array, ""]],
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        cache, first = state
        turned = lambda w: rope(project("btd,dnh->btnh", x, w[...]), context.positions, self.base)
        q, k = constrain(turned(self.q), "batch", "length", "heads", "head"), turned(self.k)
        v = project("btd,dkh->btkh", x, self.v[...])
        both = lambda v: jnp.repeat(v, 2, 2)  # keys of a pair have the same value
        if cache is None:
            out = attend(q, k, both(v), CAUSAL, context.segments, context.places)
        else:
            cache = cache.write(k, v, context.positions)
            out = attend_slots(q, cache.k, both(cache.v), CAUSAL, context.positions)
        out = self.norm(self.subtract(out, first)) * (1 - first).astype(x.dtype)
        out = constrain(out, "batch", "length", "heads", "head")
        return project("btnh,nhd->btd", out, self.o[...]), cache

    def subtract(
        self, out: Float[Array, "B T _ V"], first: Float[Array, ""]
    ) -> Float[Array, "B T N V"]:
        """First minus λ times second, λ = exp(q₁ · k₁) − exp(q₂ · k₂) + λ_init."""
        dots = (self.by_query[...] * self.by_key[...]).astype(jnp.float32).sum(-1)
        ratio = (jnp.exp(dots[0]) - jnp.exp(dots[1]) + first).astype(out.dtype)
        B, T, heads, V = out.shape
        pairs = out.reshape(B, T, self.pairs, 2, heads // (2 * self.pairs), V)
        return (pairs[:, :, :, 0] - ratio * pairs[:, :, :, 1]).reshape(B, T, heads // 2, V)


class Network(Causal):
    """Embedding, blocks, norm, head."""

    def through(self, x: Float[Array, "B T D"], context: Context, cache: Any) -> Any:
        """Every block knows how deep it is."""
        return self.blocks(x, context, (cache, first_difference(self.c.layers)))

    def exchange(self, length: int) -> Chosen | None:
        """What attention exchanges: every head is two of them."""
        return exchange_of(length, 2 * self.c.heads, 2 * self.c.kv_heads)

    def cache(self, batch: int, length: int) -> KeysValues:
        """An empty cache for `length` positions."""
        c = self.c
        empty = lambda heads, size: jnp.zeros(
            (c.layers, batch, length, heads, size), self.embed.compute
        )
        return KeysValues(empty(2 * c.kv_heads, c.head_size), empty(c.kv_heads, 2 * c.head_size))
