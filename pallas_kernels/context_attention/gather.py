"""Every device gathers all keys and values, and attends with its own queries."""

# B batch, T a device's queries, S a device's keys, N heads, K key/value heads, H head size,
# V value size.

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention import Mask, Places, Scores, attention_with_lse
from jscale.pallas_kernels.context_attention.parts import (
    Across,
    gathered,
    own_positions,
    positions_matter,
)


@dataclass(frozen=True)
class Gather(Across):
    """All-gather of keys and values over the mesh axis; their gradients are reduce-scattered.

    The least waiting where keys are few (GQA) or the sequence short; each device holds all keys.
    Source: Llama Team 2024, arXiv 2407.21783, section 3.3.2.
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
        all_keys = lambda pair: (pair[0], gathered(pair[1], self.axis))
        positions, segments = places.positions, places.segments
        if not positions_matter(mask, scores):
            positions = None
        elif positions is not None:
            positions = all_keys(positions)
        else:
            B, T = q.shape[:2]
            S = k.shape[1] * lax.axis_size(self.axis)
            mine = own_positions(B, T, self.axis)
            positions = mine, jnp.broadcast_to(jnp.arange(S), (B, S))
        found = Places(positions, None if segments is None else all_keys(segments))
        k, v = gathered(k, self.axis), gathered(v, self.axis)
        return attention_with_lse(q, k, v, mask, scores, found, implementation)
