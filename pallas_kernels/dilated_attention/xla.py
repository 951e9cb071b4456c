"""Dilated attention as ordinary attention over the tokens that a pattern takes.

Each pattern's segments become rows of a batch, of which each head keeps its own places; attention
over them is the operation `attention`, by whatever computes it best. Its results go back to their
places and are mixed with those of the other patterns by their log Σ exp, whose gradient is exact.
Where devices share the rows, those that have a segment in common exchange what their heads take of
it: T/r keys and values of each part, and nothing for a segment that lies within one.
"""

# B batch, T length, N heads, K key/value heads, H head size, V value size. Of a pattern: S rows,
# one for each segment of each row of the batch; R dilation; I places that a head takes of a row.

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jscale.pallas_kernels.attention import FULL, Mask, Places, Scores, attention_with_lse, merge
from jscale.pallas_kernels.dilated_attention.pattern import Pattern
from jscale.pallas_kernels.dilated_attention.reference import LEAST
from jscale.pallas_kernels.dilated_attention.share import Reach, Share

OUTSIDE = np.iinfo(np.int32).min  # marks places that fill a segment up


def sparse(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask,
    patterns: Sequence[Pattern],
    scores: Scores,
    segments: Int[Array, "B T"] | None,
    share: Share,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """As `reference`, in time that grows with the pairs that the patterns take."""
    parts = [_one(pattern, q, k, v, mask, scores, segments, share) for pattern in patterns]
    out, lse = reduce(merge, parts)
    return out.astype(q.dtype), lse


def alone(pattern: Pattern, length: int, mask: Mask, packed: bool) -> bool:
    """Whether what a token sees depends on the places that its head takes.

    Elsewhere only distances count, and those are the same for all heads.
    """
    absolute = mask.chunk is not None or mask.prefix > 0
    return pattern.dilation > 1 and (absolute or marked(pattern, length, mask, packed))


def marked(pattern: Pattern, length: int, mask: Mask, packed: bool) -> bool:
    """Whether marks must tell apart what may not be seen; causal masks hide what comes last."""
    even = length % pattern.segment == 0 and pattern.segment % pattern.dilation == 0
    return packed or not (even or (mask.causal and not mask.prefix))


def _one(
    pattern: Pattern,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask,
    scores: Scores,
    segments: Array | None,
    share: Share,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """A pattern's result in float32, and its log Σ exp; 0 and −1e30 where it takes nothing."""
    (B, T, N, _), R = q.shape, pattern.dilation
    reach = Reach.of(pattern, T, share)
    pattern, number = Pattern(min(pattern.segment, T), R), share.first + jnp.arange(N)
    if R > 1:  # heads take other places, and cannot share keys
        k, v = (jnp.repeat(x, N // k.shape[2], 2) for x in (k, v))
    single = alone(pattern, T, mask, segments is not None)
    taken = [_take(cut(x, pattern), pattern, number) for x in (q, k, v)]
    if single:  # then each head is a row of the batch
        taken = [x.swapaxes(1, 2).reshape(-1, x.shape[1], 1, x.shape[3]) for x in taken]
    offsets = number % R if single else jnp.arange(1)
    positions = marks = None
    if _placed(mask, scores, reach):
        positions = _positions(pattern, (B, T), offsets, reach)
    if marked(pattern, T, mask, segments is not None):
        marks = _marks(pattern, (B, T), segments, offsets, reach)
    keys, values = reach.gathered(taken[1]), reach.gathered(taken[2])
    out, lse = attention_with_lse(taken[0], keys, values, mask, scores, Places(positions, marks))
    if single:
        out, lse = (x.reshape(-1, N, *x.shape[1:2], *x.shape[3:]) for x in (out, lse[..., 0]))
        out, lse = (x.swapaxes(1, 2) for x in (out, lse))
    out = _give(out.astype(jnp.float32), pattern, number, 0.0)
    lse = _give(lse[..., None], pattern, number, LEAST)
    return join(out, B, T), join(lse, B, T)[..., 0]


def cut(x: Array, pattern: Pattern, value: int = 0) -> Array:
    """[B, T, …] as [S, I, R, …], filled up with a value at the end of each segment."""
    T, (segment, R) = x.shape[1], pattern
    rest = [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, ((0, 0), (0, -T % segment), *rest), constant_values=value)
    x = x.reshape(-1, segment, *x.shape[2:])
    x = jnp.pad(x, ((0, 0), (0, -segment % R), *rest), constant_values=value)
    return x.reshape(x.shape[0], -1, R, *x.shape[2:])


def join(x: Float[Array, "S W N V"], rows: int, length: int) -> Float[Array, "B T N V"]:
    """Segments one after another again, without what filled up the last."""
    return x.reshape(rows, -1, *x.shape[2:])[:, :length]


def _own(pattern: Pattern, number: Int[Array, " N"]) -> Bool[Array, "R N 1"]:
    """Which place of each R a head of some number takes."""
    place = jnp.arange(pattern.dilation)
    return (place[:, None] == number % pattern.dilation)[..., None]


def _take(
    x: Float[Array, "S I R N H"], pattern: Pattern, number: Int[Array, " O"]
) -> Float[Array, "S I N H"]:
    """Each head's own places: by selection, since gathers are slow and cannot be split."""
    if pattern.dilation == 1:
        return x[:, :, 0]
    return jnp.where(_own(pattern, number), x, 0).sum(2, dtype=x.dtype)


def _give(
    x: Float[Array, "S I N H"], pattern: Pattern, number: Int[Array, " N"], other: float
) -> Float[Array, "S W N H"]:
    """Each head's own places filled, the others with `other`; only true ones are left."""
    S, I, N, H = x.shape
    spread = jnp.where(_own(pattern, number), x[:, :, None], other)
    return spread.reshape(S, I * pattern.dilation, N, H)[:, : pattern.segment]


def _placed(mask: Mask, scores: Scores, reach: Reach) -> bool:
    """Whether anything asks where tokens stand, beyond their order in one and the same segment."""
    ordered = scores.slopes is None and replace(mask, causal=False) == FULL
    return not ordered or (mask.causal and reach.devices > 1)


def _positions(
    pattern: Pattern, shape: tuple[int, int], offsets: Int[Array, " O"], reach: Reach
) -> tuple[Array, Array]:
    """Where in a row what heads with these offsets take stands: of queries and of keys."""
    (B, T), (segment, R) = shape, pattern
    within = jnp.arange(-(-segment // R)) * R + offsets[:, None]
    starts = (jnp.arange(-(-T // segment)) * segment)[:, None, None] + reach.start(T)
    found = jnp.broadcast_to(
        starts + within, (B, *jnp.broadcast_shapes(starts.shape, within.shape))
    )
    return _both(found, reach)


def _marks(
    pattern: Pattern,
    shape: tuple[int, int],
    segments: Array | None,
    offsets: Int[Array, " O"],
    reach: Reach,
) -> tuple[Array, Array]:
    """Of which document what is taken is, or that it fills a segment up; of queries and keys."""
    given = jnp.zeros(shape, jnp.int32) if segments is None else segments
    found = cut(given.astype(jnp.int32), pattern, OUTSIDE)
    return _both(found[:, :, offsets].swapaxes(1, 2), reach)


def _both(x: Int[Array, "... I"], reach: Reach) -> tuple[Array, Array]:
    """[B · rows · offsets, I] of this device, and of all that its segments reach."""
    mine = x.reshape(-1, x.shape[-1])
    return mine, reach.gathered(mine)
