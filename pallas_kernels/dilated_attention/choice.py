"""The one signature of dilated attention, and the choice of who computes it."""

# B batch, T length, N heads, K key/value heads, H head size, V value size.

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, PLAIN, Mask, Scores
from jscale.pallas_kernels.attention.sinks import with_sinks
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.dilated_attention.pattern import Pattern
from jscale.pallas_kernels.dilated_attention.reference import reference
from jscale.pallas_kernels.dilated_attention.share import WHOLE, Share, fits
from jscale.pallas_kernels.dilated_attention.xla import alone, sparse
from jscale.pallas_kernels.implementation import Implementation, Operation


class Call(NamedTuple):
    """What an implementation may refuse, and a choice may depend on."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    dtype: str
    mask: Mask
    patterns: tuple[Pattern, ...]
    slopes: bool
    segments: bool
    shared: bool = False

    def __str__(self) -> str:
        sizes = ", ".join(f"{segment}/{dilation}" for segment, dilation in self.patterns)
        return f"{self.length} tokens, {self.heads} heads, patterns {sizes}, {self.dtype}"


def dilated_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask = CAUSAL,
    *,
    patterns: Sequence[tuple[int, int]],
    scores: Scores = PLAIN,
    segments: Int[Array, "B T"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N V"]:
    """Attention within patterns (w, r): segments of w tokens, of which head n takes every r-th
    from place n mod r on; Σ_p softmax_p(lse_p) out_p mixes them by their log Σ exp.

    The mix has a gradient too. Where a token is of no pattern of a head, or sees nothing, the
    result is 0; a pair that several patterns hold counts several times. Segments longer than T are
    of T. `mask` compares the tokens' true positions; `scores` are `attention`'s, without a bias;
    their sinks enter once, after the mix; `segments` are those of packed rows.
    `implementation=None` chooses, and logs what and why.
    Source: Ding et al. 2023, arXiv 2307.02486.

    Raises:
        ConfigError: sizes that do not fit, patterns of none or below 1, a bias, an unknown
            implementation or one that cannot.
    """
    given = Given(_patterns(patterns), mask, scores, segments, WHOLE)
    return _attend(q, k, v, given, implementation)


def dilated_attention_across(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
    mask: Mask,
    share: Share,
    *,
    patterns: Sequence[tuple[int, int]],
    scores: Scores = PLAIN,
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N V"]:
    """`dilated_attention` within `shard_map`: of the heads and the part of each row that are here.

    Slopes and sinks are those of the heads here, segments those of the part. Devices exchange T/r
    keys and values of a segment that several share, and none of one that lies within a part; what
    may be is asked with `unshared`.

    Raises:
        ConfigError: as `dilated_attention`; parts of rows that do not nest with segments.
    """
    found, T = _patterns(patterns), q.shape[1]
    why = unshared(found, T, share.ways, mask, scores, segments is not None)
    if why is not None:
        raise ConfigError(f"dilated_attention: {why}")
    return _attend(q, k, v, Given(found, mask, scores, segments, share), None)


def unshared(
    patterns: Sequence[tuple[int, int]],
    part: int,
    ways: int,
    mask: Mask,
    scores: Scores,
    packed: bool,
) -> str | None:
    """Why devices cannot have heads, and parts of so many tokens, of their own; else None."""
    if not fits(patterns, part, ways):
        return (
            f"patterns {[tuple(p) for p in patterns]} do not nest with parts of {part} tokens on"
            f" {ways} devices: segments must divide or be multiples of a part, and dilations divide"
            " it"
        )
    if ways > 1 and (mask.chunk is not None or mask.prefix):
        return f"{mask} is of places in whole rows, of which {ways} devices have parts"
    cut = [Pattern(max(1, min(segment, part)), dilation) for segment, dilation in patterns]
    return None if scores.slopes is None else _unsloped(cut, part, mask, packed)


class Given(NamedTuple):
    """What is asked for, but for the numbers."""

    patterns: list[Pattern]
    mask: Mask
    scores: Scores
    segments: Array | None
    share: Share


def _attend(q: Array, k: Array, v: Array, given: Given, implementation: str | None) -> Array:
    found, mask, scores, segments, share = given
    _check(q, k, v, scores, segments)
    (B, T, N, _), K, V = q.shape, k.shape[2], v.shape[-1]
    cut = tuple(Pattern(max(1, min(w, T * share.ways)), r) for w, r in found)
    kinds = scores.slopes is not None, segments is not None, share is not WHOLE
    run = OPERATION.pick(Call(B, T, N, K, str(q.dtype), mask, cut, *kinds), implementation).run
    if T == 0:
        return jnp.zeros((B, 0, N, V), q.dtype)
    bare = Scores(scores.scale, scores.cap, None, scores.slopes)
    if scores.sinks is None:
        return run(q, k, v, mask, cut, bare, segments, share)[0]
    # For the gradient of sinks, which sums over all results: rounded, they would not cancel.
    wide = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k, v))
    out, lse = run(*wide, mask, cut, bare, segments, share)
    return with_sinks(out, lse, scores.sinks)[0].astype(q.dtype)


def _patterns(given: Sequence[tuple[int, int]]) -> list[Pattern]:
    if not given:
        raise ConfigError("dilated_attention: patterns must be one (segment, dilation) or more")
    for pair in given:
        if len(pair) != 2 or min(pair) < 1:
            raise ConfigError(
                f"dilated_attention: pattern {tuple(pair)} must be a segment length and a dilation,"
                " both 1 or more"
            )
    return [Pattern(*pair) for pair in given]


def _check(q: Array, k: Array, v: Array, scores: Scores, segments: Array | None) -> None:
    (B, T, N, H), K = q.shape, k.shape[2]
    if k.shape != (B, T, K, H) or v.shape[:3] != (B, T, K):
        raise ConfigError(
            f"dilated_attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit:"
            " [B, T, N, H], [B, T, K, H] and [B, T, K, V] are wanted"
        )
    if not K or N % K:
        raise ConfigError(
            f"dilated_attention: {N} query heads are not a multiple of {K} key/value heads"
        )
    if scores.bias is not None:
        raise ConfigError("dilated_attention: scores.bias is of all pairs; take attention for it")
    for name in ("slopes", "sinks"):
        given = getattr(scores, name)
        if given is not None and given.shape != (N,):
            raise ConfigError(
                f"dilated_attention: scores.{name} {given.shape} must be of {N} heads"
            )
    if segments is not None and segments.shape != (B, T):
        raise ConfigError(f"dilated_attention: segments {segments.shape} must be {(B, T)}")


def _unsloped(patterns: Sequence[Pattern], length: int, mask: Mask, packed: bool) -> str | None:
    """Why rows of single heads cannot be: a slope is of a head, and they are of all."""
    for pattern in patterns:
        if alone(pattern, length, mask, packed):
            return (
                f"cannot have slopes with the pattern {tuple(pattern)} where a token's place"
                " counts: with a chunked or prefix mask, packed rows, or an uneven length"
            )
    return None


def _unfit(call: Call) -> str | None:
    patterns = [p._replace(segment=min(p.segment, call.length)) for p in call.patterns]
    return _unsloped(patterns, call.length, call.mask, call.segments) if call.slopes else None


def _whole(call: Call) -> str | None:
    return "computes whole rows of all heads only" if call.shared else None


def preferred(call: Call, device: Device) -> Sequence[tuple[str, str]]:
    """Whom to try, best first, and why."""
    return [
        ("xla", "costs only the pairs that the patterns take"),
        ("reference", "computes whatever is asked"),
    ]


OPERATION = Operation(
    "dilated attention",
    {
        "reference": Implementation(reference, _whole),
        "xla": Implementation(sparse, _unfit),
    },
    preferred,
)
