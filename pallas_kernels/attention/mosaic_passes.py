"""What attention on Hopper and on Blackwell has alike: its limits, and a gradient by passes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jscale.pallas_kernels.attention.triton_tiles import LOG2E

MOST = 65_535  # blocks along the second and third axis of a grid


def limits(call: Any, queries: int, keys: int) -> str | None:
    """Why kernels with tiles of so many queries and keys cannot compute a call, on any chip."""
    if call.dtype not in ("bfloat16", "float16"):
        return f"computes bfloat16 and float16 only, not {call.dtype}"
    if call.head % 64 or call.value % 64 or max(call.head, call.value) > 256:
        return "needs heads of a multiple of 64, up to 256"
    if call.bias is not None:
        return "takes no bias"
    if not (call.rows and call.queries and call.keys):
        return "needs a query and a key"
    if max(call.rows, call.heads, -(-call.queries // queries), -(-call.keys // keys)) > MOST:
        return f"takes up to {MOST:,} rows, heads and tiles"
    return None


def by_passes(
    forward: Callable[..., Any], queries_pass: Callable[..., Any], keys_pass: Callable[..., Any]
) -> Callable[..., Any]:
    """`forward(problem, q, k, v, given)` with the gradients of its result and of its log Σ exp.

    The passes, over queries and over keys, get what they need of both besides.
    """

    def save(p: Any, q: Any, k: Any, v: Any, given: Any) -> tuple[Any, tuple[Any, ...]]:
        out, lse = forward(p, q, k, v, given)
        return (out, lse), (q, k, v, given, out, lse)

    def backward(p: Any, saved: tuple[Any, ...], slopes: tuple[Any, Any]) -> tuple[Any, ...]:
        q, k, v, given, out, lse = saved
        dout, more = slopes
        delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).swapaxes(1, 2) - more
        extra = given, dout, lse * LOG2E, delta
        return queries_pass(p, q, k, v, *extra), *keys_pass(p, q, k, v, *extra), None

    attend = jax.custom_vjp(forward, nondiff_argnums=(0,))
    attend.defvjp(save, backward)
    return attend
