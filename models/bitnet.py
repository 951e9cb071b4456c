"""BitNet b1.58: weights of −1, 0 and 1 with one scale a matrix, activations of 8 bits.

Trained with latent weights that are rounded on the way forward, gradients passing straight through
(Bengio et al. 2013, arXiv 1308.3432); packed four to a byte afterwards.
Source: Ma et al. 2024, arXiv 2402.17764; norms as in Wang et al. 2023, arXiv 2310.11453.
"""

# B batch, T length, D model size, N heads, K key/value heads, H head size.

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt8

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh import constrain
from jscale.models.attention import Heads, attend, attend_cached
from jscale.models.causal import Block, Causal, check_sizes, share
from jscale.models.decoder import Context, KeysValues
from jscale.models.layers import RMSNorm, weight
from jscale.models.model import Params
from jscale.models.rope import rope
from jscale.pallas_kernels.attention import CAUSAL

LEAST = 1e-5  # what a scale is at least, so that zeros stay zeros


def ternary(w: Float[Array, "X Y"]) -> tuple[Float[Array, "X Y"], Float[Array, ""]]:
    """round(w / s) kept within −1 … 1, and s, the mean of |w|."""
    scale = jnp.maximum(jnp.abs(w).mean(), LEAST)
    return jnp.clip(jnp.round(w / scale), -1, 1), scale


def eight_bits(x: Float[Array, "*B X"]) -> tuple[Float[Array, "*B X"], Float[Array, "*B 1"]]:
    """round(x / s) within −128 … 127, and s: the largest of each token is 127 · s."""
    scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), LEAST) / 127
    return jnp.clip(jnp.round(x / scale), -128, 127), scale


def straight(x: Float[Array, "*X"], rounded: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """`rounded`, with the gradient of `x`."""
    return x + jax.lax.stop_gradient(rounded - x)


def pack(w: Float[Array, "X Y"]) -> tuple[UInt8[Array, "X/4 Y"], Float[Array, ""]]:
    """Latent weights as two bits each, four rows to a byte, and their scale."""
    rounded, scale = ternary(w.astype(jnp.float32))
    codes = (rounded + 1).astype(jnp.uint8).reshape(-1, 4, w.shape[1])
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8)[:, None]
    return (codes << shifts).sum(1, dtype=jnp.uint8), scale


def unpack(bytes_: UInt8[Array, "X Y"]) -> Int8[Array, "4*X Y"]:
    """−1, 0 and 1 from two bits each."""
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8)[:, None]
    codes = (bytes_[:, None] >> shifts) & 3
    return codes.astype(jnp.int8).reshape(-1, bytes_.shape[1]) - 1


class Latent(nnx.Module):
    """x W by rounded activations and weights, for training."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs):
        self.kernel = weight(rngs, next(iter(sizes.values())), **sizes)

    def __call__(self, x: Float[Array, "B T X"]) -> Float[Array, "B T Y"]:
        y, w = x.astype(jnp.float32), self.kernel[...].astype(jnp.float32)
        for_x, for_w = eight_bits(y), ternary(w)
        y = straight(y, for_x[0] * for_x[1]).astype(x.dtype)
        w = straight(w, for_w[0] * for_w[1]).astype(x.dtype)
        return y @ w


class Packed(nnx.Module):
    """x W by integers: what `Latent` gives, to rounding, from an eighth of bfloat16's memory."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs):
        (before, into), (after, out) = sizes.items()
        codes = jnp.full((into // 4, out), 0b01010101, jnp.uint8)  # zeros
        self.codes = nnx.Param(codes, out_sharding=(before, after), eager_sharding=False)
        self.scale = nnx.Param(jnp.ones(()), out_sharding=(), eager_sharding=False)

    def __call__(self, x: Float[Array, "B T X"]) -> Float[Array, "B T Y"]:
        y, scale = eight_bits(x.astype(jnp.float32))
        whole = jnp.matmul(
            y.astype(jnp.int8), unpack(self.codes[...]), preferred_element_type=jnp.int32
        )
        return (whole * (scale * self.scale[...].astype(jnp.float32))).astype(x.dtype)


MATRICES = {"latent": Latent, "packed": Packed}


@dataclass(frozen=True)
class BitNet:
    """The sizes of a BitNet b1.58, a Llama whose matrices between embedding and head are ternary.

    Raises:
        ConfigError: a size below 1 or that four do not divide, heads that do not group, an odd
            head, an unknown policy or form of weights.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # query heads
    kv_heads: int  # key/value heads, each shared by heads / kv_heads query heads
    hidden: int  # size inside the gated feed-forward
    rope: float = 10_000.0  # base of the rotary frequencies
    eps: float = 1e-6  # of the norms
    tied: bool = False  # whether embedding and head share one matrix
    weights: str = "latent"  # latent: to be trained; packed: 2 bits each
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_sizes(self, "hidden")
        for name in ("dim", "hidden"):
            if getattr(self, name) % 4:
                raise ConfigError(f"{name}={getattr(self, name)} must be a multiple of 4: to pack")
        if self.weights not in MATRICES:
            close = did_you_mean(self.weights, MATRICES)
            raise ConfigError(f"there are no weights {self.weights!r}; {close}")

    @property
    def head_size(self) -> int:
        return share(self.dim, self.heads, None)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> Causal:
        return Causal(self, self.block, rngs, compute)

    def block(self, rngs: nnx.Rngs) -> Block:
        """One block, with random weights."""
        return Block(self, Attention(self, rngs), FeedForward(self, rngs))

    def packed(self, params: Params) -> tuple["BitNet", Params]:
        """The same network with packed weights: its config and its parameters."""

        def walk(node: Any) -> Any:
            if not isinstance(node, dict):
                return node
            if "kernel" in node and node["kernel"].ndim == 3:  # of the stacked layers
                codes, scale = jax.vmap(pack)(node["kernel"])
                return {"codes": codes, "scale": scale}
            return {name: walk(inner) for name, inner in node.items()}

        return replace(self, weights="packed"), walk(params)


class Attention(nnx.Module):
    """Attention by ternary matrices, with a norm before the last."""

    def __init__(self, c: BitNet, rngs: nnx.Rngs):
        matrix, H = MATRICES[c.weights], c.head_size
        self.size, self.base = Heads(c.dim, c.heads, c.kv_heads, H), c.rope
        self.q = matrix(dict(embed=c.dim, heads=c.heads * H), rngs)
        self.k = matrix(dict(embed=c.dim, kv_heads=c.kv_heads * H), rngs)
        self.v = matrix(dict(embed=c.dim, kv_heads=c.kv_heads * H), rngs)
        self.norm = RMSNorm(c.dim, c.eps)
        self.o = matrix(dict(heads=c.heads * H, embed=c.dim), rngs)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysValues | None
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        split = lambda y, heads: y.reshape(*x.shape[:2], heads, self.size.head)
        turned = lambda y: rope(y, context.positions, self.base)
        q = turned(split(self.q(x), self.size.heads))
        k = turned(split(self.k(x), self.size.kv_heads))
        v = split(self.v(x), self.size.kv_heads)
        q = constrain(q, "batch", "length", "heads", "head")
        if cache is None:
            out = attend(q, k, v, CAUSAL, context.segments, context.places)
        else:
            out, cache = attend_cached(q, k, v, CAUSAL, context.positions, cache)
        return self.o(self.norm(out.reshape(*x.shape[:2], -1))), cache


class FeedForward(nnx.Module):
    """(silu(x G) ⊙ x U) W by ternary matrices, with a norm before the last."""

    def __init__(self, c: BitNet, rngs: nnx.Rngs):
        matrix = MATRICES[c.weights]
        self.gate = matrix(dict(embed=c.dim, mlp=c.hidden), rngs)
        self.up = matrix(dict(embed=c.dim, mlp=c.hidden), rngs)
        self.norm = RMSNorm(c.hidden, c.eps)
        self.down = matrix(dict(mlp=c.hidden, embed=c.dim), rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = constrain(jax.nn.silu(self.gate(x)) * self.up(x), "batch", "length", "mlp")
        return self.down(self.norm(h))
