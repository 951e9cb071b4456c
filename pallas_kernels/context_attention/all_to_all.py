"""Devices trade parts of the sequence for heads: each attends with some heads to all of it."""

# B batch, T a device's queries, S a device's keys, N heads, K key/value heads, H head size,
# V value size.

from dataclasses import dataclass
from math import lcm

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import Mask, Places, Scores, attention_with_lse
from jscale.pallas_kernels.context_attention.gather import Gather
from jscale.pallas_kernels.context_attention.parts import gathered_places
from jscale.pallas_kernels.context_attention.ring import Ring


@dataclass(frozen=True)
class AllToAll:
    """All-to-all over the mesh axis, from parts of the sequence to heads, and back.

    `within`, of another axis, attends where the sequence is still split after that: the sequence is
    split over (within.axis, axis), the first of them outermost. Where key/value heads do not divide
    into the devices they are repeated as often as needed, and no more.
    Source: Jacobs et al. 2023, arXiv 2309.14509; with a ring: Fang & Zhao 2024, arXiv 2405.07719.

    Raises:
        ConfigError: twice the same axis.
    """

    axis: str
    within: Gather | Ring | None = None

    def __post_init__(self) -> None:
        if self.within is not None and self.axis in self.within.axes:
            raise ConfigError(
                f"AllToAll and the {type(self.within).__name__} within it need axes of their own,"
                f" not both {self.axis!r}"
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the sequence is split, in its order."""
        return (*(self.within.axes if self.within else ()), self.axis)

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
        """The result for this device's queries, and the log Σ exp of their scores.

        Raises:
            ConfigError: query heads that do not divide into the devices.
        """
        ways, (N, K) = lax.axis_size(self.axis), (q.shape[2], k.shape[2])
        if N % ways:
            raise ConfigError(
                f"context_attention: {N} query heads do not divide into the {ways} devices of the"
                f" mesh axis {self.axis!r}, as AllToAll needs: use Ring or Gather, or another axis"
            )
        repeats = lcm(K, ways) // K  # so few that every device's query heads group evenly
        k, v = (jnp.repeat(x, repeats, 2) if repeats > 1 else x for x in (k, v))
        q, k, v = (lax.all_to_all(x, self.axis, 2, 1, tiled=True) for x in (q, k, v))
        first = lax.axis_index(self.axis) * (N // ways)
        slopes, sinks = (
            None if x is None else lax.dynamic_slice_in_dim(x, first, N // ways)
            for x in (scores.slopes, scores.sinks)
        )
        scores = Scores(scores.scale, scores.cap, None, slopes, sinks)
        inner = self.within.attend if self.within else attention_with_lse
        found = inner(q, k, v, mask, scores, gathered_places(places, self.axis), implementation)
        out, lse = (lax.all_to_all(x, self.axis, 1, 2, tiled=True) for x in found)
        return out, lse
