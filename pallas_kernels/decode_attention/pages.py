"""Keys and values in pages, whole or quantised, and how new ones are written."""

# T tokens, P pages, C places in a page, K key/value heads, H head size, V value size.

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jscale.pallas_kernels.decode_attention.sequences import Sequences

WHOLE = ("float32", "bfloat16", "float16")
LIMITS = {"int8": 127.0, "float8_e4m3fn": 448.0}  # the largest number of a quantised dtype


class Pages(NamedTuple):
    """Keys and values of many tokens, a page of `C` at a time; head by head within a page.

    A page of one head is one contiguous tile, as matrix units want it. Numbers in int8 or
    float8_e4m3fn stand for themselves times the scale of their token and head.
    """

    k: Num[Array, "P K C H"]
    v: Num[Array, "P K C V"]
    k_scales: Float[Array, "P K C"] | None = None
    v_scales: Float[Array, "P K C"] | None = None

    @staticmethod
    def empty(shape: tuple[int, int, int, int], dtype: Any, value: int | None = None) -> "Pages":
        """Pages of zeros; `shape` is (P, K, C, H), and `value` the size of values if not H."""
        scales = jnp.ones(shape[:3]) if jnp.dtype(dtype).name in LIMITS else None
        values = (*shape[:3], shape[3] if value is None else value)
        return Pages(jnp.zeros(shape, dtype), jnp.zeros(values, dtype), scales, scales)


def quantise(x: Float[Array, "*any H"], dtype: Any) -> tuple[Array, Float[Array, "*any"]]:
    """Numbers in int8 or float8_e4m3fn, and the float32 scales that make them `x` again.

    The largest of the last axis becomes the dtype's largest. No number is off by more than half a
    step of its scale in int8, or 1/16 of itself (of 2⁻⁶ of the scale at least) in float8_e4m3fn.
    """
    dtype = jnp.dtype(dtype)
    limit = LIMITS[dtype.name]
    x = x.astype(jnp.float32)
    peak = jnp.abs(x).max(-1)
    scales = jnp.where(peak == 0, 1.0, peak / limit)
    steps = jnp.clip(x / scales[..., None], -limit, limit)
    steps = jnp.round(steps) if dtype == jnp.int8 else steps
    return steps.astype(dtype), scales


def write(
    pages: Pages, k: Float[Array, "T K H"], v: Float[Array, "T K V"], sequences: Sequences
) -> Pages:
    """The pages with the keys and values of the sequences' new tokens in their places.

    Tokens of nobody, and places beyond the table or the pages, are not written. Pages of int8 or
    float8_e4m3fn take them quantised, by token and head.
    """
    count, _, places, _ = pages.k.shape
    mine, positions, owned = sequences.owners(k.shape[0])
    at = positions // places
    owned &= at < sequences.table.shape[1]
    page = jnp.take_along_axis(sequences.table[mine], at[:, None], 1, mode="clip")[:, 0]
    page = jnp.where(owned & (page >= 0), page, count)  # one past the last is dropped
    put = lambda old, new: old.at[page, :, positions % places].set(
        new.astype(old.dtype), mode="drop"
    )
    if pages.k_scales is None or pages.v_scales is None:
        return Pages(put(pages.k, k), put(pages.v, v))
    (k, k_scales), (v, v_scales) = quantise(k, pages.k.dtype), quantise(v, pages.v.dtype)
    return Pages(
        put(pages.k, k),
        put(pages.v, v),
        put(pages.k_scales, k_scales),
        put(pages.v_scales, v_scales),
    )
