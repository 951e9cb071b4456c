"""Keys and values go round a ring of devices, each attending with its own queries.

Each step attends to the keys at hand while they are already on their way to the next device; the
results over parts of the keys are merged by their log Σ exp, in float32. Of the forward pass only
the device's own arrays are kept: the backward pass sends keys and values round once more, together
with the sums of their gradients. There a part's result is computed again, to weigh its gradient.
"""

# B batch, T a device's queries, S a device's keys, N heads, K key/value heads, H head size,
# V value size.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention import (
    CAUSAL,
    FULL,
    Mask,
    Places,
    Scores,
    attention_with_lse,
    merge,
)
from jscale.pallas_kernels.attention.sinks import with_sinks
from jscale.pallas_kernels.context_attention.parts import Across, own_positions, positions_matter


@dataclass(frozen=True)
class Ring(Across):
    """Keys and values passed on from device to device of the mesh axis, one hop for each step.

    A device never holds more keys than its own part, the one that comes and the one that goes. Of a
    causal mask, parts of which nothing is seen are skipped; `zigzag` gives all devices equal work.
    In bfloat16 results over parts are rounded, and with them the gradient of sinks (`with_sinks`).
    Source: Liu et al. 2023, arXiv 2310.01889; zig-zag: Brandon et al. 2023, arXiv 2311.09431.
    """

    def attend(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K V"],
        mask: Mask,
        scores: Scores,
        places: Places,
        implementation: str | None,
    ) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
        """The result for this device's queries, and the log Σ exp of their scores."""
        positions = places.positions
        # Then a part needs no positions of its own: the mask asks for distances only.
        ordered = positions is None and mask.chunk is None and not mask.prefix
        if not positions_matter(mask, scores):
            positions = None
        elif positions is None:
            mine = own_positions(q.shape[0], q.shape[1], self.axis)
            positions = mine, mine
        spread = places.positions is not None
        rule = Rule(self.axis, mask, scores.scale, scores.cap, ordered, spread, implementation)
        mine, block = split(q, k, v, Places(positions, places.segments))
        out, lse = _round(rule, scores.slopes, mine, block)
        if scores.sinks is not None:  # once, and before the sum over parts is rounded
            out, lse = with_sinks(out, lse, scores.sinks)
        return out.astype(q.dtype), lse


class Rule(NamedTuple):
    """What is known while tracing.

    `ordered`: parts follow each other, and are seen by distance only. `spread`: positions were
    given, so that a part need not be of one piece.
    """

    axis: str | tuple[str, ...]
    mask: Mask
    scale: float | None
    cap: float | None
    ordered: bool
    spread: bool
    implementation: str | None


class Mine(NamedTuple):
    """The queries of a device, which stay, and their places."""

    q: Any
    positions: Any
    segments: Any


class Block(NamedTuple):
    """The keys and values that travel, and their places."""

    k: Any
    v: Any
    positions: Any
    segments: Any


def split(q: Array, k: Array, v: Array, places: Places) -> tuple[Mine, Block]:
    """What stays, and what travels."""
    (here, there), (group, other) = (pair or (None, None) for pair in places)
    return Mine(q, here, group), Block(k, v, there, other)


Result = tuple[Array, Array]  # out and log Σ exp
Attend = Callable[[Array, Array, Array], Result]


def over(rule: Rule, slopes: Array | None, mine: Mine, block: Block, own: bool) -> Attend:
    """Attention as a function of q, k and v, for a block that is the device's own or another's."""
    mask, positions = rule.mask, None
    if mine.positions is not None:
        positions = mine.positions, block.positions
    if rule.ordered and own:
        positions = None
    elif rule.ordered and mask == CAUSAL and slopes is None:  # all of it comes before, or nothing
        mask, positions = FULL, None
    segments = None if mine.segments is None else (mine.segments, block.segments)
    scores, places = Scores(rule.scale, rule.cap, None, slopes), Places(positions, segments)
    return lambda q, k, v: attention_with_lse(q, k, v, mask, scores, places, rule.implementation)


def seen(rule: Rule, mine: Mine, block: Block) -> Any:
    """False only where none of the device's queries sees any key of the block.

    Of parts with positions of their own, as in zig-zag, hardly any is unseen: there it is the tiles
    within that are skipped, and no branch keeps more arrays alive.
    """
    found = True
    if mine.positions is not None and not rule.spread:
        here, there = mine.positions, block.positions
        found &= rule.mask.some(here.min(), here.max(), there.min(), there.max())
    if mine.segments is not None:
        here, there = mine.segments, block.segments
        found &= (here.max() >= there.min()) & (here.min() <= there.max())
    return found


def when(found: Any, more: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`more()` if found, which may be known while tracing."""
    return more() if found is True else lax.cond(found, more, otherwise)


def onward(tree: Any, axis: str | tuple[str, ...]) -> Any:
    """The arrays of the device before, on the way round."""
    ways = lax.axis_size(axis)
    hops = [(i, (i + 1) % ways) for i in range(ways)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis, hops), tree)


def forward(rule: Rule, slopes: Array | None, mine: Mine, block: Block) -> Result:
    """One round: results over all blocks, merged."""
    ways = lax.axis_size(rule.axis)

    def visit(total: Result, block: Block) -> Result:
        attend = over(rule, slopes, mine, block, own=False)
        more = lambda: merge(total, attend(mine.q, block.k, block.v))
        return when(seen(rule, mine, block), more, lambda: total)

    def step(carry: tuple[Result, Block], _: None) -> tuple[tuple[Result, Block], None]:
        total, block = carry
        after = onward(block, rule.axis)  # on its way while this block is attended to
        return (visit(total, block), after), None

    after = onward(block, rule.axis) if ways > 1 else block
    out, lse = over(rule, slopes, mine, block, own=True)(mine.q, block.k, block.v)
    total = out.astype(jnp.float32), lse
    if ways > 1:
        # A loop and not steps in a row, which a compiler may reorder until all keys are held.
        (total, after), _ = lax.scan(step, (total, after), length=ways - 2)
        total = visit(total, after)
    return total


Slopes = tuple[Array, Array, Array]  # of q, k and v, in their dtypes; summed in float32


def backward(rule: Rule, saved: tuple[Any, ...], given: Result) -> tuple[None, Mine, Block]:
    """The gradients of q, k and v, each home again after one more round."""
    slopes, mine, block, out, lse = saved
    ways = lax.axis_size(rule.axis)
    of = partial(pull, out=out, lse=lse, given=given)

    def visit(block: Block) -> Slopes:
        attend = over(rule, slopes, mine, block, own=False)
        more = lambda: of(attend, mine.q, block.k, block.v)
        zeros = lambda: tuple(map(jnp.zeros_like, (mine.q, block.k, block.v)))
        # Else they would leave a branch as float32, in twice the memory.
        return lax.optimization_barrier(when(seen(rule, mine, block), more, zeros))

    def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        dq, sums, block = carry
        after = onward(block, rule.axis)
        sums = onward(sums, rule.axis)  # so far; this device's share is computed meanwhile
        more, *shares = visit(block)
        return (dq + more, [a + b for a, b in zip(sums, shares, strict=True)], after), None

    after = onward(block, rule.axis) if ways > 1 else block
    first = of(over(rule, slopes, mine, block, own=True), mine.q, block.k, block.v)
    dq, *sums = (x.astype(jnp.float32) for x in first)
    if ways > 1:
        (dq, sums, after), _ = lax.scan(step, (dq, sums, after), length=ways - 2)
        sums = onward(sums, rule.axis)
        more, *shares = visit(after)
        dq += more
        sums = onward([a + b for a, b in zip(sums, shares, strict=True)], rule.axis)
    dk, dv = sums
    like = lambda x, y: x.astype(y.dtype)
    return (
        None,
        Mine(like(dq, mine.q), None, None),
        Block(like(dk, block.k), like(dv, block.v), None, None),
    )


def pull(
    attend: Attend,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    *,
    out: Float[Array, "B T N V"],
    lse: Float[Array, "B T N"],
    given: Result,
) -> Slopes:
    """Gradients through one block, whose result is a share exp(lse_block − lse) of the whole's."""
    (found, partial_lse), back = jax.vjp(attend, q, k, v)
    slope, of_lse = given[0].astype(jnp.float32), given[1]
    share = jnp.exp(partial_lse - lse)
    apart = (slope * (found.astype(jnp.float32) - out.astype(jnp.float32))).sum(-1)
    slopes = (share[..., None] * slope).astype(found.dtype), share * (apart + of_lse)
    return back(slopes)


def _forward(
    rule: Rule, slopes: Array | None, mine: Mine, block: Block
) -> tuple[Result, tuple[Any, ...]]:
    out, lse = forward(rule, slopes, mine, block)
    return (out, lse), (slopes, mine, block, out.astype(mine.q.dtype), lse)


_round = jax.custom_vjp(forward, nondiff_argnums=(0,))
_round.defvjp(_forward, backward)
