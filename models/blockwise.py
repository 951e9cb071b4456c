"""Products of experts in eight bits, with a scale for each small block of numbers.

Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv 2412.19437, section 3.3.
"""

# R rows given, M rows taken, G experts of a device, D size of a row, F that of a result,
# J tiles of b rows of one expert.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul.rows import taken
from jscale.pallas_kernels.grouped_matmul.xla import lay_out

FP8 = jnp.float8_e4m3fn
LARGEST = float(jnp.finfo(FP8).max)  # 448
SCALES = ("powers", "any")

Tile = tuple[int, ...]  # the lengths of a block along each dimension


class Scaled(NamedTuple):
    """Numbers of eight bits, and what those of each block are to be multiplied by."""

    values: Float[Array, "..."]
    scales: Float[Array, "..."]


@dataclass(frozen=True)
class Blockwise:
    """The products of experts on fp8 numbers (e4m3), whose scales are found as they are needed.

    Rows are scaled in tiles of 1 × `size` and matrices in blocks of `size` × `size`, each by its
    largest number now. That goes for the product, the gradient of the rows, and that of the
    matrices, for which the rows of each expert are scaled along themselves (`size` × 1). Sums are
    float32; router, norms, biases and embeddings are as they were. A hidden size that is split over
    devices is cut into tiles on each of them.

    No hardware that JAX reaches multiplies such blocks by groups of rows, so these are multiplied
    as the activations' own dtype: the numbers are those of fp8, to the last bit with scales that
    are powers of two, and the speed is bfloat16's at best, less the rounding. What falls is memory:
    what experts keep for the backward pass is fp8.

    Raises:
        ConfigError: a size below 1, or unknown scales.
    """

    size: int = 128  # numbers along a tile, and along both sides of a block
    scales: str = "powers"  # powers (of two, rounded up), any (float32)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"Blockwise.size must be at least 1, not {self.size}")
        if self.scales not in SCALES:
            hint = did_you_mean(self.scales, SCALES)
            raise ConfigError(f"no scales {self.scales!r} of Blockwise; {hint}")

    def products(
        self,
        x: Float[Array, "R D"],
        weights: tuple[Float[Array, "G D F"], ...],
        sizes: Int[Array, " G"],
        rows: Int[Array, " M"] | None = None,
    ) -> tuple[Float[Array, "M F"], ...]:
        """`grouped_matmul` of rows by several stacks of matrices; of the rows fp8 is kept."""
        return _products(self, x, weights, sizes, rows)

    def keeping(
        self, function: Callable[..., Float[Array, "M F"]], *given: Float[Array, "M F"]
    ) -> Float[Array, "M F"]:
        """`function(*given)`, for whose gradient these are kept as fp8."""
        run = jax.custom_vjp(function)
        tile = (1, self.size)

        def forward(*given: Array) -> tuple[Array, tuple[Scaled, ...]]:
            return function(*given), tuple(self.scaled(x, tile) for x in given)

        def backward(saved: tuple[Scaled, ...], by: Array) -> tuple[Array, ...]:
            back = jax.vjp(function, *(unscaled(x, tile, by.dtype) for x in saved))[1]
            return back(by)

        run.defvjp(forward, backward)
        return run(*given)

    def scaled(self, x: Float[Array, "..."], tile: Tile) -> Scaled:
        """An array in eight bits; blocks at its ends may be short."""
        wide = x.astype(jnp.float32)
        scales = self._scale(_largest(wide, tile))
        small = wide / _spread(scales, tile, x.shape)
        return Scaled(jnp.clip(small, -LARGEST, LARGEST).astype(FP8), scales)

    def rounded(self, x: Float[Array, "..."], tile: Tile, dtype: DTypeLike) -> Float[Array, "..."]:
        """An array as eight bits have it."""
        return unscaled(self.scaled(x, tile), tile, dtype)

    def by_rows(self, x: Float[Array, "M D"], sizes: Int[Array, " G"]) -> Float[Array, "M D"]:
        """Rows as eight bits have them, scaled in tiles of rows of one expert."""
        tiles = lay_out(sizes, x.shape[0], self.size)
        wide = self.rounded(taken(x, tiles.source), (1, self.size, 1), x.dtype)
        return taken(wide.reshape(-1, x.shape[1]), tiles.slot)

    def _scale(self, largest: Float[Array, "..."]) -> Float[Array, "..."]:
        """What makes the largest number of a block the largest of fp8; not a number of such."""
        scale = jnp.maximum(largest / LARGEST, jnp.finfo(jnp.float32).tiny)
        if self.scales == "powers":
            share, exponent = jnp.frexp(scale)
            scale = jnp.ldexp(jnp.ones_like(scale), exponent - (share == 0.5))
        return jnp.where(jnp.isfinite(largest), scale, jnp.nan)


def unscaled(x: Scaled, tile: Tile, dtype: DTypeLike) -> Float[Array, "..."]:
    """The numbers that were scaled."""
    wide = x.values.astype(jnp.float32) * _spread(x.scales, tile, x.values.shape)
    return wide.astype(dtype)


def _largest(x: Float[Array, "..."], tile: Tile) -> Float[Array, "..."]:
    """The largest absolute value of each block."""
    counts = [-(-n // t) for n, t in zip(x.shape, tile, strict=True)]
    more = [(0, c * t - n) for n, c, t in zip(x.shape, counts, tile, strict=True)]
    sides = [side for pair in zip(counts, tile, strict=True) for side in pair]
    return jnp.pad(jnp.abs(x), more).reshape(sides).max(tuple(range(1, 2 * x.ndim, 2)))


def _spread(scales: Float[Array, "..."], tile: Tile, shape: Tile) -> Float[Array, "..."]:
    """For each number of an array the scale of its block."""
    places = tuple(range(1, 2 * scales.ndim, 2))
    sides = [side for pair in zip(scales.shape, tile, strict=True) for side in pair]
    whole = [n * t for n, t in zip(scales.shape, tile, strict=True)]
    wide = jnp.broadcast_to(jnp.expand_dims(scales, places), sides).reshape(whole)
    return wide[tuple(slice(n) for n in shape)]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(
    how: Blockwise, x: Any, weights: tuple[Any, ...], sizes: Any, rows: Any
) -> tuple[Any, ...]:
    return _forward(how, x, weights, sizes, rows)[0]


def _matrices(how: Blockwise, w: Any, dtype: DTypeLike) -> Array:
    return how.rounded(w, (1, how.size, how.size), dtype)


def _forward(
    how: Blockwise, x: Any, weights: tuple[Any, ...], sizes: Any, rows: Any
) -> tuple[tuple[Array, ...], Any]:
    tile = (1, how.size)
    kept = how.scaled(x, tile)
    near = unscaled(kept, tile, x.dtype)
    out = tuple(grouped_matmul(near, _matrices(how, w, x.dtype), sizes, rows=rows) for w in weights)
    return out, (kept, weights, sizes, rows)


def _backward(how: Blockwise, saved: Any, by: tuple[Any, ...]) -> tuple[Any, ...]:
    kept, weights, sizes, rows = saved
    dtype, tile = by[0].dtype, (1, how.size)
    x = unscaled(kept, tile, dtype)
    own = how.by_rows(x if rows is None else taken(x, rows), sizes)
    dx, dws = jnp.zeros(x.shape, jnp.float32), []
    for w, g in zip(weights, by, strict=True):
        # Of each derivative the compiler leaves out the half that is not asked for.
        back = jax.vjp(lambda x, w=w: _by(x, _matrices(how, w, dtype), sizes, rows), x)[1]
        dx += back(how.rounded(g, tile, dtype))[0].astype(jnp.float32)
        back = jax.vjp(lambda w: _by(own, w, sizes, None), w)[1]
        dws.append(back(how.by_rows(g, sizes))[0])
    return dx.astype(dtype), tuple(dws), None, None


def _by(x: Any, w: Any, sizes: Any, rows: Any) -> Array:
    return grouped_matmul(x, w, sizes, rows=rows)


_products.defvjp(_forward, _backward)
