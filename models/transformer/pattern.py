"""Which tokens attend to which, beyond what a mask says: all, or those of LongNet's patterns."""

# B batch, T length, S slots of a cache, N heads, H head size.

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import per_shard, split_over
from jscale.models.attention import OWN, attend, attend_slots, parts_of
from jscale.models.decoder import Context
from jscale.models.sequence import ROWS, ways
from jscale.pallas_kernels.attention import Mask, Scores, merge
from jscale.pallas_kernels.dilated_attention import (
    Share,
    dilated_attention,
    dilated_attention_across,
    unshared,
)

LEAST = -1e30  # the log Σ exp of nothing


@runtime_checkable
class Attends(Protocol):
    """A choice of pairs: how whole rows attend to themselves, and new tokens to a cache.

    `even` says whether a token's place in its row does not matter, only what is before it.
    """

    @property
    def even(self) -> bool: ...

    def rows(
        self, q: Array, k: Array, v: Array, mask: Mask, context: Context, scores: Scores
    ) -> Array: ...

    def slots(
        self, q: Array, k: Array, v: Array, mask: Mask, positions: Array, scores: Scores
    ) -> Array: ...


@dataclass(frozen=True)
class Dense:
    """Each token attends to all that its mask shows."""

    @property
    def even(self) -> bool:
        return True

    def rows(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T N H"],
        v: Float[Array, "B T N H"],
        mask: Mask,
        context: Context,
        scores: Scores,
    ) -> Float[Array, "B T N H"]:
        """Attention of whole rows to themselves."""
        return attend(q, k, v, mask, context.segments, context.places, scores)

    def slots(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S N H"],
        v: Float[Array, "B S N H"],
        mask: Mask,
        positions: Int[Array, "B T"],
        scores: Scores,
    ) -> Float[Array, "B T N H"]:
        """Attention of tokens at these positions to the slots of a cache."""
        return attend_slots(q, k, v, mask, positions, scores)


@dataclass(frozen=True)
class Dilated:
    """LongNet: within segments of w tokens, head n attends among places n mod r, n mod r + r, …

    Several such patterns (w, r) are mixed by their log Σ exp; with widths and dilations that grow
    alike the cost is linear in length. Sizes need not divide each other: what is left over is a
    shorter segment, nothing is shifted. Segments are of places in the row, for packed documents
    too: these do not see each other, and are cut where they lie.
    Source: Ding et al. 2023, arXiv 2307.02486.

    Raises:
        ConfigError: no pattern, or sizes below 1.
    """

    patterns: tuple[tuple[int, int], ...]  # (segment, dilation) each: ((2048, 1), (8192, 4))

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ConfigError("Dilated needs patterns, such as ((2048, 1), (8192, 4))")
        for pattern in self.patterns:
            if len(pattern) != 2 or min(pattern) < 1:
                raise ConfigError(
                    f"Dilated: pattern {pattern} must be a segment and a dilation, both 1 or more"
                )

    @property
    def even(self) -> bool:
        return False

    def rows(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T N H"],
        v: Float[Array, "B T N H"],
        mask: Mask,
        context: Context,
        scores: Scores,
    ) -> Float[Array, "B T N H"]:
        """Attention of whole rows to themselves.

        Devices that share a row exchange what dilation leaves of keys and values; where they cannot
        have parts of their own, the partitioner brings rows together.
        """
        over, split = split_over(*ROWS), ways(*ROWS)
        packed = context.segments is not None
        if unshared(self.patterns, q.shape[1] // split, split, mask, scores, packed) is not None:
            return dilated_attention(
                *(q, k, v, mask),
                patterns=self.patterns,
                scores=scores,
                segments=context.segments,
            )
        heads = split_over(*OWN[:3])

        def part(q: Array, k: Array, v: Array, seen: Any, of_scores: Any) -> Array:
            first = lax.axis_index(heads) * q.shape[2] if heads else 0
            return dilated_attention_across(
                *(q, k, v, mask, Share(over, first)),
                patterns=self.patterns,
                scores=replace(scores, **of_scores),
                segments=seen,
            )

        given, axes = parts_of(scores)
        inputs = OWN, OWN, OWN, ROWS, axes
        return per_shard(part, q, k, v, context.segments, given, inputs=inputs, outputs=OWN)

    def slots(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S N H"],
        v: Float[Array, "B S N H"],
        mask: Mask,
        positions: Int[Array, "B T"],
        scores: Scores,
    ) -> Float[Array, "B T N H"]:
        """Attention of tokens at these positions to the slots of a cache, all scores at once."""
        (B, _, N, H), S = q.shape, k.shape[1]
        slots = jnp.broadcast_to(jnp.arange(S), (B, S))
        logits = jnp.einsum("btnh,bsnh->btns", q, k, preferred_element_type=jnp.float32)
        logits *= scores.of(H)
        if scores.slopes is not None:
            away = jnp.abs(positions[:, :, None] - slots[:, None]).astype(jnp.float32)
            logits -= scores.slopes[:, None] * away[:, :, None]
        visible = mask.allows(positions, slots)[:, :, None]

        def of(pattern: tuple[int, int]) -> tuple[Array, Array]:
            width, dilation = pattern
            near = positions[:, :, None] // width == slots[:, None] // width
            mine = jnp.arange(N) % dilation
            taken = lambda p: (p % width % dilation)[..., None] == mine
            both = taken(positions)[..., None] & taken(slots).swapaxes(1, 2)[:, None]
            seen = visible & near[:, :, None] & both
            held = jnp.where(seen, logits, LEAST)
            lse = jnp.where(seen.any(-1), jax.nn.logsumexp(held, -1), LEAST)
            weights = jnp.where(seen, jnp.exp(held - lse[..., None]), 0.0)
            return jnp.einsum("btns,bsnh->btnh", weights, v.astype(jnp.float32)), lse

        out: Any = reduce(merge, map(of, self.patterns))[0]
        return out.astype(q.dtype)
