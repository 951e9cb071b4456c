"""A sequence that devices share: what its attention exchanges, and the order of its tokens.

Under a causal mask late tokens see more than early ones. Where each device attends with its own
tokens, whoever has the last ones works longest and the others wait. So a network may give every
device an early and a late chunk (zig-zag). It does so once: tokens are reordered before they are
embedded, when they are but a few integers, and hidden states are put back after the last block.
Inside each attention it would cost as much as an all-to-all, layer by layer; in the batch, every
loss, metric and recurrent layer would have to know.
"""

# B batch, T length, D model size.

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.mesh import AllToAll, Axes, Chosen, Exchange, Gather, per_shard, sharing, split_over
from jscale.mesh.layout import current
from jscale.models.decoder import Context
from jscale.pallas_kernels import context_attention as kernels
from jscale.pallas_kernels.attention import Mask

ROWS = Axes("batch", "length")


def exchange_of(length: int, heads: int, kv_heads: int) -> Chosen | None:
    """What attention with so many heads exchanges under the current layout; None for whole rows.

    Where only query heads are split, each device takes the key/value heads that its own need.
    """
    here = heads // ways(*ROWS, "heads")
    others = kv_heads // ways(*ROWS, "kv_heads")
    if not split_over(*ROWS, "kv_heads"):
        others = max(1, here * kv_heads // heads)
    return sharing(length, here, others)


def ways(*axes: str | None) -> int:
    """How many ways the current layout splits the last of an activation's dimensions."""
    layout = current()
    names = split_over(*axes)
    return 1 if layout is None else math.prod(layout.mesh.shape[name] for name in names)


def kernel_of(exchange: Exchange, axes: tuple[str, ...]) -> kernels.Exchange:
    """The exchange over these mesh axes, the sequence's in its order."""
    axis = axes[0] if len(axes) == 1 else axes
    if isinstance(exchange, AllToAll):
        within = None if exchange.within is None else kernel_of(exchange.within, axes[:-1])
        assert not isinstance(within, kernels.AllToAll)
        return kernels.AllToAll(axes[-1], within)
    return kernels.Gather(axis) if isinstance(exchange, Gather) else kernels.Ring(axis)


class Order(NamedTuple):
    """The order in which a network reads its tokens: zig-zag over some mesh axes, or their own."""

    axes: tuple[str, ...] = ()
    ways: int = 1

    @staticmethod
    def under(mask: Mask, length: int, chosen: Chosen | None) -> "Order":
        """Zig-zag where parts of a sequence would be unequal work, and have two halves."""
        if chosen is None or chosen.exchange == AllToAll():
            return Order()
        ways = math.prod(chosen.shared.ways)
        unequal = mask.causal and mask.window is None and mask.chunk is None
        return Order(chosen.shared.axes, ways) if unequal and not length % (2 * ways) else Order()

    def apply(
        self, tokens: Int[Array, "B T"], context: Context
    ) -> tuple[Int[Array, "B T"], Context]:
        """Tokens and what belongs to them, in this order."""
        if not self.axes:
            return tokens, context._replace(tokens=tokens)
        given = tokens, context.positions, context.segments
        tokens, positions, segments = self._moved(kernels.to_zigzag, given, ROWS)
        places = jnp.broadcast_to(kernels.zigzag_places(tokens.shape[1], self.ways), tokens.shape)
        moved = dict(positions=positions, segments=segments, places=places, tokens=tokens)
        return tokens, context._replace(**moved)

    def undo(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states in the order in which their tokens were given."""
        if not self.axes:
            return hidden
        return self._moved(kernels.from_zigzag, hidden, Axes(*ROWS, "embed"))

    def _moved(self, function: Any, tree: Any, axes: Axes) -> Any:
        move = lambda tree: jax.tree.map(lambda x: function(x, self.axes), tree)
        spec = jax.tree.map(lambda _: axes, tree)
        return per_shard(move, tree, inputs=(spec,), outputs=spec)
