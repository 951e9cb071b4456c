"""YOCO, you only cache once: half of the layers make one set of keys and values for the other half.

Layers of the first half see a window of tokens; those of the second attend to the whole past, all
to the same keys and values. So of a long text one layer's worth is kept, and a few windows.
Source: Sun et al. 2024, arXiv 2405.05254.
"""

# B batch, T length, S keys, D model size, N heads, K key/value heads, H head size, W window.

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.attention import Heads, SelfAttention, attend, attend_slots
from jscale.models.causal import Block, Causal, check_sizes, share
from jscale.models.decoder import Context, KeysValues
from jscale.models.layers import RMSNorm, Stack, SwiGLU, project, weight
from jscale.models.rope import rope
from jscale.pallas_kernels.attention import CAUSAL, Mask, attention

LONG_AGO = -(2**30)  # the position of what a window does not hold yet


@dataclass(frozen=True)
class YOCO:
    """The sizes of a YOCO whose first half attends to windows.

    Raises:
        ConfigError: a size below 1, an odd number of layers, heads that do not group, an odd head,
            an unknown policy.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks in all, half of each kind
    heads: int  # query heads
    kv_heads: int  # key/value heads, each shared by heads / kv_heads query heads
    hidden: int  # size inside SwiGLU
    window: int  # tokens that a layer of the first half sees, its own among them
    head: int | None = None  # size of one head; None: dim / heads
    rope: float = 10_000.0  # base of the rotary frequencies
    eps: float = 1e-6  # of the norms
    tied: bool = False  # whether embedding and head share one matrix
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "window")
        if self.layers % 2:
            raise ConfigError(f"layers={self.layers} must be even: half of them make what is kept")

    @property
    def head_size(self) -> int:
        return share(self.dim, self.heads, self.head)

    @property
    def size(self) -> Heads:
        return Heads(self.dim, self.heads, self.kv_heads, self.head_size)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "Network":
        return Network(self, rngs, compute)

    def near(self, rngs: nnx.Rngs) -> Block:
        """A block of the first half, with random weights."""
        attend = WindowAttention(self.size, self.rope, rngs, Mask(window=self.window))
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))

    def far(self, rngs: nnx.Rngs) -> Block:
        """A block of the second half."""
        attend = CrossAttention(self.size, self.rope, rngs)
        return Block(self, attend, SwiGLU(self.dim, self.hidden, rngs))


class Window(NamedTuple):
    """The last W keys and values of a layer; position p is in slot p mod W."""

    k: Float[Array, "*layers B W K H"]
    v: Float[Array, "*layers B W K H"]
    positions: Int[Array, "*layers B W"]

    def with_new(
        self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], positions: Int[Array, "B T"]
    ) -> "Window":
        """What it holds, and new ones after it: T + W of each."""
        join = lambda old, new: jnp.concatenate([old.astype(new.dtype), new], 1)
        return Window(join(self.k, k), join(self.v, v), join(self.positions, positions))

    def write(self, k: Array, v: Array, positions: Int[Array, "B T"]) -> "Window":
        """The window with the newest of these in it."""
        W, rows = self.k.shape[1], jnp.arange(k.shape[0])[:, None]
        stay = positions > positions.max(1, keepdims=True) - W
        slots = jnp.where(stay, positions % W, W)  # W is no slot: those are dropped
        put = lambda old, new: old.at[rows, slots].set(new.astype(old.dtype), mode="drop")
        return Window(put(self.k, k), put(self.v, v), put(self.positions, positions))


class Cache(NamedTuple):
    """The windows of the first half's layers, and what all layers of the second attend to."""

    windows: Window
    shared: KeysValues


class Given(NamedTuple):
    """What the layers of the second half share."""

    context: Context
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    cached: bool = False  # whether slot s of the keys is that of position s, some still empty
    key: Any = None


class WindowAttention(SelfAttention):
    """Attention to the last `mask.window` tokens, with as many kept."""

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Any = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        if cache is None:
            return super().__call__(x, context)
        q, k, v = self.project(x)
        q, k = (self.rotary(a, context.positions) for a in (q, k))
        places = context.positions
        if context.segments is not None:  # padding takes nobody's place in the window
            places = jnp.where(context.segments > 0, places, LONG_AGO)
        seen = cache.with_new(k, v, places)
        pair = context.positions, seen.positions
        out = attention(q, seen.k, seen.v, self.mask, positions=pair)
        cache = cache.write(k, v, places)
        return project("btnh,nhd->btd", out, self.o[...]), cache


class CrossAttention(nnx.Module):
    """Attention to given keys and values."""

    def __init__(self, size: Heads, base: float, rngs: nnx.Rngs):
        self.base, fan = base, size.heads * size.head
        self.q = weight(rngs, size.dim, embed=size.dim, heads=size.heads, head=size.head)
        self.o = weight(rngs, fan, heads=size.heads, head=size.head, embed=size.dim)

    def __call__(
        self, x: Float[Array, "B T D"], given: Given, state: None
    ) -> tuple[Float[Array, "B T D"], None]:
        context = given.context
        q = rope(project("btd,dnh->btnh", x, self.q[...]), context.positions, self.base)
        q = constrain(q, "batch", "length", "heads", "head")
        if given.cached:
            out = attend_slots(q, given.k, given.v, CAUSAL, context.positions)
        else:
            out = attend(q, given.k, given.v, CAUSAL, context.segments, context.places)
        return project("btnh,nhd->btd", out, self.o[...]), state


class Shared(nnx.Module):
    """The keys and values of the second half, from what the first half gives."""

    def __init__(self, c: YOCO, rngs: nnx.Rngs):
        self.base, self.norm = c.rope, RMSNorm(c.dim, c.eps)
        sizes = dict(embed=c.dim, kv_heads=c.kv_heads, head=c.head_size)
        self.k, self.v = weight(rngs, c.dim, **sizes), weight(rngs, c.dim, **sizes)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysValues | None
    ) -> tuple[Given, KeysValues | None]:
        x = self.norm(x)
        k = rope(project("btd,dkh->btkh", x, self.k[...]), context.positions, self.base)
        v = project("btd,dkh->btkh", x, self.v[...])
        if cache is None:
            return Given(context, k, v, key=context.key), None
        cache = cache.write(k, v, context.positions)
        return Given(context, cache.k, cache.v, True, context.key), cache


class Network(Causal):
    """Embedding, the half that sees windows, the keys and values, the half that shares them."""

    def __init__(self, c: YOCO, rngs: nnx.Rngs, compute: DTypeLike):
        super().__init__(c, c.near, rngs, compute, c.layers // 2)
        self.shared = Shared(c, rngs)
        self.second = Stack(c.far, c.layers // 2, rngs, c.remat)

    def through(self, x: Float[Array, "B T D"], context: Context, cache: Cache | None) -> Any:
        """Both halves, and between them what the second shares."""
        windows, kept = (None, None) if cache is None else cache
        x, (_, windows) = self.blocks(x, context, windows)
        given, kept = self.shared(x, context, kept)
        x, _ = self.second(x, given)
        return x, ({}, None if windows is None or kept is None else Cache(windows, kept))

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `length` positions: windows are no longer than the window."""
        c, wide = self.c, min(self.c.window, length)
        layers = c.layers // 2
        zeros = lambda *shape: jnp.zeros((*shape, c.kv_heads, c.head_size), self.embed.compute)
        long_ago = jnp.full((layers, batch, wide), LONG_AGO, jnp.int32)
        near, far = zeros(layers, batch, wide), zeros(batch, length)
        return Cache(Window(near, near, long_ago), KeysValues(far, far))
