"""Tokens through their experts in chunks: one is exchanged while another is computed.

Chunks depend on each other only where they use the same wires, and there on purpose. Exchanges that
do not depend on each other XLA would make one, which all experts would wait for. Source: Wang et
al. 2024, Domino, arXiv 2409.15241.
"""

# R tokens, C choices per token, D the size of a token, M rows of a chunk.

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.models.dispatching import Way
from jscale.pallas_kernels.dispatch import Dispatcher, Received, combine, dispatch

Tokens = tuple[Float[Array, "R D"], Int[Array, "R C"], Float[Array, "R C"]]
Run = Callable[[Received, int], Array]  # of a chunk's rows, and its number


def through(
    tokens: Tokens,
    experts: int,
    way: Way,
    run: Run,
    total: Callable[[Array], Array] = lambda y: y,
) -> tuple[Float[Array, "R D"], Int[Array, ""]]:
    """Σ_c weights[c] · expert choices[c] of x, and how many choices of this device were dropped.

    `tokens` are x, choices, weights; `experts` how many there are, `total` sums over devices what
    each of them has of a result. Of an odd number of tokens the first chunk has one more, so that
    nothing is padded. Results are as in one chunk; the gradients of weights, sums over chunks, and
    what is dropped, are not bit for bit.
    """
    parts = [[a[i] for a in tokens] for i in _slices(tokens[0].shape[0], way.asked.chunks)]
    scope = lambda number: jax.named_scope(f"chunk{number}") if len(parts) > 1 else nullcontext()
    sent: list[tuple[Received, Any, Dispatcher]] = []
    for x, choices, _ in parts:
        if sent:  # on its way after the chunk before, whose experts it does not wait for
            received, ticket, by = sent[-1]
            before, x = lax.optimization_barrier((received.x, x))
            sent[-1] = received._replace(x=before), ticket, by
        by = way.dispatcher(choices.size)
        with scope(len(sent)):
            sent.append((*dispatch(x, choices, experts, by), by))
    out: list[Array] = []
    for number, (received, ticket, by) in enumerate(sent):
        with scope(number):
            y = run(received, number)
        if out:
            out[-1], y = lax.optimization_barrier((out[-1], y))
        with scope(number):
            out.append(total(combine(y, parts[number][2], ticket, by)))
    dropped = sum((received.dropped for received, *_ in sent), jnp.int32(0))
    return (out[0] if len(out) == 1 else jnp.concatenate(out)), dropped


def dealt(
    tokens: Tokens, axes: tuple[str, ...], run: Callable[[Tokens], tuple[Array, Array]]
) -> tuple[Float[Array, "R F"], Int[Array, ""]]:
    """What `run` makes of tokens that all devices along these mesh axes have, each of a part.

    The last parts may end with tokens of nobody. The number beside is of this device's part.
    """
    if not axes:
        return run(tokens)
    n, R = lax.axis_size(axes), tokens[0].shape[0]
    P = -(-R // n)
    x, choices, weights = (jnp.pad(a, ((0, n * P - R), (0, 0))) for a in tokens)
    choices = jnp.where(jnp.arange(n * P)[:, None] < R, choices, -1)
    mine = lambda a: lax.dynamic_slice_in_dim(a, lax.axis_index(axes) * P, P)
    out, number = run((mine(x), mine(choices), mine(weights)))
    return lax.all_gather(out, axes, tiled=True)[:R], number


def _slices(count: int, chunks: int) -> list[slice]:
    """So many parts of a range, the earlier ones longer by at most one."""
    ends = [-(-count * i // chunks) for i in range(chunks + 1)]
    return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
