"""Multi-head latent attention: keys and values of all heads come from one short vector of a token.

Source: DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.
"""

# B batch, T length, S cache length, D model size, N heads, C size of a latent, R rotated numbers of
# a head, H size of a head with them, W = C + R numbers kept of a token, V value size.

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.attention import attend
from jscale.models.decoder import Context
from jscale.models.layers import RMSNorm, constant, project, weight
from jscale.models.rope import Rotation
from jscale.pallas_kernels.attention import CAUSAL, Scores, attention


@dataclass(frozen=True)
class Latent:
    """The sizes of latent attention.

    Raises:
        ConfigError: a size below 1, or an odd number of rotated ones.
    """

    kv: int = 512  # numbers from which keys and values of all heads are made
    q: int | None = 1536  # the same of queries; None: these are made from hidden states
    plain: int = 128  # numbers of a head's queries and keys that are not rotated
    rotated: int = 64  # those that are: of keys, all heads share them
    value: int = 128  # size of a head's values
    pairs: bool = True  # whether numbers 2i and 2i + 1 are rotated together, not i and i + R / 2
    biases: bool = False  # whether the projections from and to a token's hidden state add one

    def __post_init__(self) -> None:
        for name in ("kv", "q", "plain", "rotated", "value"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"Latent.{name} must be at least 1, not {size}")
        if self.rotated % 2:
            raise ConfigError(f"Latent.rotated must be even for rotation, not {self.rotated}")

    @property
    def head(self) -> int:
        """The size of a query and of a key."""
        return self.plain + self.rotated


class Latents(NamedTuple):
    """What is kept of tokens seen so far: latents, and after each the rotated key of all heads."""

    kept: Float[Array, "*layers B S W"]

    def write(self, new: Float[Array, "B T W"], positions: Int[Array, "B T"]) -> "Latents":
        """The cache with new ones in the slots of their positions."""
        rows = jnp.arange(new.shape[0])[:, None]
        return Latents(self.kept.at[rows, positions].set(new.astype(self.kept.dtype), mode="drop"))


class LatentAttention(nnx.Module):
    """Attention whose keys and values are made from a latent that is normed and shared by heads.

    `scores` has the scale of the softmax.
    """

    def __init__(
        self, c: Latent, dim: int, heads: int, rotary: Rotation, scores: Scores, rngs: nnx.Rngs
    ):
        self.c, self.rotary, self.scores = c, rotary, scores
        if c.q is None:
            self.q = weight(rngs, dim, embed=dim, heads=heads, head=c.head)
        else:
            self.q_down, self.q_norm = weight(rngs, dim, embed=dim, head=c.q), RMSNorm(c.q)
            self.q_up = weight(rngs, c.q, embed=c.q, heads=heads, head=c.head)
        self.kv_down = weight(rngs, dim, embed=dim, head=c.kv + c.rotated)
        self.kv_norm = RMSNorm(c.kv)
        self.kv_up = weight(rngs, c.kv, embed=c.kv, kv_heads=heads, head=c.plain + c.value)
        self.o = weight(rngs, heads * c.value, heads=heads, head=c.value, embed=dim)
        sizes = {"q_down": c.q, "kv_down": c.kv + c.rotated, "o": dim}
        for name, size in sizes.items():
            if c.biases and size is not None:
                setattr(self, f"{name}_bias", constant(0.0, scale=size))

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Latents | None = None
    ) -> tuple[Float[Array, "B T D"], Latents | None]:
        q, kept = self.queries(x, context.positions), self.latents(x, context.positions)
        if cache is None:
            k, v = self.expanded(kept)
            out = attend(q, k, v, CAUSAL, context.segments, context.places, self.scores)
        else:
            cache = cache.write(kept, context.positions)
            seen = constrain(cache.kept.astype(x.dtype), "batch", "keys", None)
            slots = jnp.broadcast_to(jnp.arange(seen.shape[1]), seen.shape[:2])
            one = self.absorbed if x.shape[1] == 1 else self.looked_up
            out = one(q, seen, (context.positions, slots))
        return self._biased("o", project("btnv,nvd->btd", out, self.o[...])), cache

    def queries(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        """Queries, the last numbers of each rotated."""
        if self.c.q is None:
            q = project("btd,dnh->btnh", x, self.q[...])
        else:
            short = self._biased("q_down", project("btd,dc->btc", x, self.q_down[...]))
            q = project("btc,cnh->btnh", self.q_norm(short), self.q_up[...])
        plain, rotated = jnp.split(q, [self.c.plain], -1)
        q = jnp.concatenate([plain, self.rotate(rotated, positions)], -1)
        return constrain(q, "batch", "length", "heads", "head")

    def latents(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T W"]:
        """Normed latents, and after each the rotated key of all heads."""
        both = self._biased("kv_down", project("btd,dc->btc", x, self.kv_down[...]))
        latent, key = jnp.split(both, [self.c.kv], -1)
        key = self.rotate(key[:, :, None], positions)[:, :, 0]
        return jnp.concatenate([self.kv_norm(latent), key], -1)

    def rotate(
        self, x: Float[Array, "B T N R"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N R"]:
        """Rotated numbers. Pairs come out as halves, of queries and keys alike."""
        if self.c.pairs:
            x = jnp.concatenate([x[..., ::2], x[..., 1::2]], -1)
        return self.rotary(x, positions)

    def expanded(
        self, kept: Float[Array, "B S W"]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N V"]]:
        """The keys and values of all heads."""
        latent, key = jnp.split(kept, [self.c.kv], -1)
        both = project("bsc,cnh->bsnh", latent, self.kv_up[...])
        plain, v = jnp.split(both, [self.c.plain], -1)
        shared = jnp.broadcast_to(key[:, :, None], (*plain.shape[:3], self.c.rotated))
        return jnp.concatenate([plain, shared], -1), v

    def looked_up(
        self, q: Float[Array, "B T N H"], kept: Float[Array, "B S W"], positions: Any
    ) -> Float[Array, "B T N V"]:
        """Attention of many tokens to a cache, from which keys and values are made."""
        k, v = (constrain(x, "batch", "keys", "kv_heads", "head") for x in self.expanded(kept))
        return attention(q, k, v, CAUSAL, scores=self.scores, positions=positions)

    def absorbed(
        self, q: Float[Array, "B T N H"], kept: Float[Array, "B S W"], positions: Any
    ) -> Float[Array, "B T N V"]:
        """The same without making any: queries are brought to the latents, and what they find back.

        (q, W c) = (Wᵀ q, c), so that latents are the keys and values of a single head. That is less
        work where one token reads many.
        """
        to_k, to_v = jnp.split(self.kv_up[...], [self.c.plain], -1)
        plain, rotated = jnp.split(q, [self.c.plain], -1)
        q = jnp.concatenate([project("btnh,cnh->btnc", plain, to_k), rotated], -1)
        k = kept[:, :, None]
        found = attention(
            q, k, k[..., : self.c.kv], CAUSAL, scores=self.scores, positions=positions
        )
        return project("btnc,cnv->btnv", found, to_v)

    def _biased(self, name: str, y: Float[Array, "B T Y"]) -> Float[Array, "B T Y"]:
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...].astype(y.dtype)
