"""Some tokens at a time: what holds logits, or their gradient, holds those of a chunk only."""

# M tokens, m of a chunk, D model size, V vocabulary (of this device, where it is split).

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

product = partial(jnp.matmul, preferred_element_type=jnp.float32)


def over_chunks(
    tokens: int, body: Callable[[Any, Any], tuple[Any, Any]], start: Any, *arrays: Array
) -> tuple[Any, Any]:
    """`body(carry, chunk)` over nearly equal chunks of at most `tokens`, as `lax.scan`.

    The last is filled up with zeros, of which nothing is given back. One chunk is one call.
    """
    M = arrays[0].shape[0]
    count = -(-M // max(1, tokens))
    if count <= 1:
        return body(start, arrays)
    each = -(-M // count)
    more = count * each - M
    grow = lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) if more else x
    parts = tuple(grow(x).reshape(count, each, *x.shape[1:]) for x in arrays)
    carry, outs = lax.scan(body, start, parts)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:M], outs)


def pull(
    hidden: Float[Array, "m D"], kernel: Float[Array, "D V"], back: Float[Array, "m V"]
) -> tuple[Float[Array, "m D"], Float[Array, "D V"]]:
    """The gradients of the hidden states and, in float32, of the kernel from that of the logits."""
    back = back.astype(hidden.dtype)
    return product(back, kernel.T.astype(hidden.dtype)).astype(hidden.dtype), product(
        hidden.T, back
    )


def gradients(
    tokens: int,
    slopes: Callable[..., Float[Array, "m V"]],
    hidden: Float[Array, "M D"],
    kernel: Float[Array, "D V"],
    *rows: Array,
) -> tuple[Float[Array, "M D"], Float[Array, "D V"]]:
    """The gradients of the hidden states and of the kernel, the latter summed in float32.

    `slopes(hidden, *rows)` gives the gradient of the logits of some tokens.
    """

    def body(dw: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        dh, more = pull(chunk[0], kernel, slopes(*chunk))
        return dw + more, dh

    dw, dh = over_chunks(tokens, body, jnp.zeros(kernel.shape, jnp.float32), hidden, *rows)
    return dh, dw
