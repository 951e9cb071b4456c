"""Positions that turn queries and keys."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size.

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.models.rope import rope
from jscale.models.rope_scaling import powers

QueriesKeys = tuple[Float[Array, "B T N H"], Float[Array, "B S K H"]]


class Rotary(ABC):
    """Rotation of heads by their positions; scores then depend on distances alone.

    `turn` applies to queries and to keys, which are cached so; `meet` to both just before their
    product, under the positions of both.
    """

    @abstractmethod
    def turn(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]: ...

    def meet(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        queries: Int[Array, "B T"],
        keys: Int[Array, "B S"],
    ) -> QueriesKeys:
        """Queries and keys as they are to be multiplied."""
        return q, k

    @property
    def block(self) -> int | None:
        """The length of a block, where queries see their own and the one before it only."""
        return None


@dataclass(frozen=True)
class Rope(Rotary):
    """Rotation of the halves of each head. Source: Su et al. 2021, arXiv 2104.09864.

    Raises:
        ConfigError: a base that is not above 1.
    """

    base: float = 10_000.0  # of the frequencies

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise ConfigError(f"the base of rotary positions must be above 1, not {self.base}")

    def turn(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        return rope(x, positions, self.base)


@dataclass(frozen=True)
class XPos(Rotary):
    """Rotation of neighbouring pairs, and products that shrink with distance (LeX).

    Pair i of the score of a query at n and a key at m is scaled by ζᵢ^((n − m) / base) with
    ζᵢ = (2i/H + 0.4) / 1.4. Source: Sun et al. 2022, arXiv 2212.10554.

    `blockwise` is the training length: in longer sequences a query then sees keys of its own block
    and of the one before it, of half that length each. Sequences up to that length, and so
    training, are the same with it and without.

    Raises:
        ConfigError: a base that is not positive, or a training length that is odd or below 2.
    """

    base: float = 512.0  # tokens over which pair i shrinks by its ζᵢ
    blockwise: int | None = None  # the training length, for blockwise causal attention; None: full
    frequencies: float = 10_000.0  # base of the rotary frequencies

    def __post_init__(self) -> None:
        if not self.base > 0 or not self.frequencies > 1:
            raise ConfigError(
                f"xPos needs a positive base and frequencies above 1, not {self.base} and"
                f" {self.frequencies}"
            )
        if self.blockwise is not None and (self.blockwise < 2 or self.blockwise % 2):
            raise ConfigError(
                f"blockwise must be an even length of at least 2 tokens, not {self.blockwise}"
            )

    @property
    def block(self) -> int | None:
        """Half the training length."""
        return None if self.blockwise is None else self.blockwise // 2

    def turn(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        """Rotate the pairs (2i, 2i + 1) of each head, computed in float32."""
        H = x.shape[-1]
        angle = positions[..., None, None].astype(jnp.float32) * powers(self.frequencies, H)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], H // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return turned.reshape(x.shape).astype(x.dtype)

    def meet(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        queries: Int[Array, "B T"],
        keys: Int[Array, "B S"],
    ) -> QueriesKeys:
        """Both scaled about the middle of the row's queries, where no factor grows out of range.

        A cache holds keys that are turned and not scaled: the middle moves on as it is read.
        """
        last = queries.max(1, keepdims=True)
        middle = (last + queries.min(1, keepdims=True)) // 2
        # Slots of a cache beyond the last query hold no keys: their factor is of no account.
        back = middle - jnp.minimum(keys, last)
        return self._scaled(q, queries - middle), self._scaled(k, back)

    def _scaled(self, x: Array, exponent: Int[Array, "B T"]) -> Array:
        H = x.shape[-1]
        zeta = (jnp.arange(0, H, 2, dtype=jnp.float32) / H + 0.4) / 1.4
        power = exponent[..., None, None].astype(jnp.float32) / self.base
        factor = jnp.repeat(zeta**power, 2, -1)
        return (x.astype(jnp.float32) * factor).astype(x.dtype)
