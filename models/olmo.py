"""OLMo 2: norms after branches, and of queries and keys over all heads together.

Source: OLMo Team 2024, arXiv 2501.00656.
"""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jscale.mesh import constrain
from jscale.models.attention import Heads, SelfAttention
from jscale.models.decoder import Context
from jscale.models.dense import Dense
from jscale.models.layers import RMSNorm, SwiGLU, constant
from jscale.models.rope import Rotation


@dataclass(frozen=True)
class Olmo2(Dense):
    """The sizes of an OLMo 2.

    Raises:
        ConfigError: a size below 1, heads that do not group, an odd head, an unknown policy.
    """

    rope: float = 500_000.0  # base of the rotary frequencies
    biases: bool = False  # whether attention's projections add one

    def block(self, rngs: nnx.Rngs) -> "Block":
        """One block, with random weights."""
        biases = "qkvo" * self.biases
        attend = OlmoAttention(self.size, self.rotary, rngs, self.eps, biases=biases)
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))


class HeadsNorm(nnx.Module):
    """x / rms(x) · scale over all heads together, in float32."""

    def __init__(self, eps: float, **shape: int):
        self.eps, self.scale = eps, constant(1.0, **shape)

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, (-2, -1), keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class OlmoAttention(SelfAttention):
    """Attention whose queries and keys are normed, all heads together, before they are rotated."""

    def __init__(self, size: Heads, rotary: Rotation, rngs: nnx.Rngs, eps: float, **more: Any):
        super().__init__(size, rotary, rngs, **more)
        self.q_norm = HeadsNorm(eps, heads=size.heads, head=size.head)
        self.k_norm = HeadsNorm(eps, kv_heads=size.kv_heads, head=size.head)

    def project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values."""
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Block(nnx.Module):
    """x + norm attend(x), then x + norm feed(x)."""

    def __init__(self, c: Olmo2, attend: nnx.Module, feed: nnx.Module):
        self.attend, self.attended_norm = attend, RMSNorm(c.dim, c.eps)
        self.feed, self.fed_norm = feed, RMSNorm(c.dim, c.eps)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, state: Any
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Any]]:
        """The new hidden states, what is reported, and what becomes of the state."""
        with jax.named_scope("attend"):
            attended, state = self.attend(x, context, state)
            x = constrain(x + self.attended_norm(attended), "batch", "length", "embed")
        with jax.named_scope("feed"):
            x = constrain(x + self.fed_norm(self.feed(x)), "batch", "length", "embed")
        return x, ({}, state)
