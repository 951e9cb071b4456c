"""The one signature of decode attention, and the choice of who computes it."""

# T tokens, S sequences, M pages of a sequence, P pages, C places in a page, N heads, K key/value
# heads, H head size, V value size.

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention.mask import CAUSAL, Mask
from jscale.pallas_kernels.attention.scores import PLAIN, Scores
from jscale.pallas_kernels.decode_attention.call import Call
from jscale.pallas_kernels.decode_attention.pages import LIMITS, WHOLE, Pages
from jscale.pallas_kernels.decode_attention.reference import reference
from jscale.pallas_kernels.decode_attention.sequences import Sequences
from jscale.pallas_kernels.decode_attention.tpu import kernel
from jscale.pallas_kernels.decode_attention.tpu import refuses as refused_by_tpu
from jscale.pallas_kernels.decode_attention.triton import refuses as refused_by_triton
from jscale.pallas_kernels.decode_attention.triton import triton
from jscale.pallas_kernels.decode_attention.xla import paged
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.implementation import Implementation, Operation


def decode_attention(
    q: Float[Array, "T N H"],
    pages: Pages,
    sequences: Sequences,
    mask: Mask = CAUSAL,
    *,
    scores: Scores = PLAIN,
    implementation: str | None = None,
) -> Float[Array, "T N V"]:
    """softmax(q kᵀ / √H) v of new tokens over the context of their sequence, in pages of a cache.

    `sequences` says whose the tokens are and where their pages lie; some may be in prefill and
    others decode one token. `write` puts the new tokens' own keys and values there first. Positions
    are places in the context, and `mask` compares them. Heads are grouped (query head n reads
    key/value head n · K / N), the softmax is float32, and so are sums. `scores` may have a scale, a
    cap, slopes and sinks, but no bias. Tokens of nobody give 0. What no token sees is not used,
    whatever it holds, and no page outside the table is read. There is no gradient.
    `implementation=None` chooses by device, shape and dtype, and logs what and why.
    Source: Kwon et al. 2023, arXiv 2309.06180.

    Raises:
        ConfigError: sizes or dtypes that do not fit, a bias, an unknown implementation or one that
            cannot; a gradient, unless the implementation is "reference".
    """
    _check(q, pages, sequences, scores)
    call = Call.of(q, pages, sequences, mask)
    chosen = OPERATION.pick(call, implementation)
    if 0 in (*q.shape, *pages.v.shape, *sequences.table.shape):
        return jnp.zeros((*q.shape[:2], pages.v.shape[-1]), q.dtype)
    if chosen is OPERATION.implementations["reference"]:
        return reference(q, pages, sequences, mask, scores)
    return _forward_only(chosen.run, mask, q, pages, sequences, scores)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward_only(
    run: Any, mask: Mask, q: Array, pages: Pages, sequences: Sequences, scores: Scores
) -> Array:
    return run(q, pages, sequences, mask, scores)


@_forward_only.defjvp
def _refused(*_: Any) -> NoReturn:
    raise ConfigError(
        "decode_attention has no gradient, except by implementation 'reference':"
        " use attention in training"
    )


def _check(q: Array, pages: Pages, sequences: Sequences, scores: Scores) -> None:
    _check_sizes(q, pages, sequences)
    stored, names = str(pages.k.dtype), (*WHOLE, *LIMITS)
    if stored not in names or pages.v.dtype != pages.k.dtype:
        raise ConfigError(
            f"decode_attention: pages.k and pages.v must both be of one of {', '.join(names)},"
            f" not {stored} and {pages.v.dtype}"
        )
    for name in ("k_scales", "v_scales"):
        scales, wanted = getattr(pages, name), pages.k.shape[:3]
        if (scales is not None) != (stored in LIMITS):
            need = "needs" if stored in LIMITS else "takes no"
            raise ConfigError(f"decode_attention: pages of {stored}: {need} pages.{name}")
        if scales is not None and (scales.shape, scales.dtype) != (wanted, jnp.float32):
            raise ConfigError(
                f"decode_attention: pages.{name}, {scales.shape} {scales.dtype}, must be [P, K, C],"
                f" {wanted}, float32"
            )
    if scores.bias is not None:
        raise ConfigError("decode_attention: scores.bias is not possible here; slopes are")
    for name in ("slopes", "sinks"):
        given = getattr(scores, name)
        if given is not None and given.shape != (q.shape[1],):
            raise ConfigError(
                f"decode_attention: scores.{name} {given.shape} must be of {q.shape[1]} heads"
            )


def _check_sizes(q: Array, pages: Pages, sequences: Sequences) -> None:
    k, v, (starts, lengths, table) = pages.k, pages.v, sequences
    if q.ndim != 3 or k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3]:
        raise ConfigError(
            f"decode_attention: q {q.shape}, pages.k {k.shape} and pages.v {v.shape} do not fit:"
            " [T, N, H], [P, K, C, H] and [P, K, C, V] are wanted"
        )
    N, K = q.shape[1], k.shape[1]
    if q.shape[2] != k.shape[3]:
        raise ConfigError(
            f"decode_attention: heads of q of {q.shape[2]} and of pages.k of {k.shape[3]} differ"
        )
    if not K or N % K:
        raise ConfigError(
            f"decode_attention: {N} query heads are not a multiple of {K} key/value heads"
        )
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ConfigError(f"decode_attention: q must be of a floating dtype, not {q.dtype}")
    if table.ndim != 2 or lengths.shape != table.shape[:1] or starts.shape != (len(table) + 1,):
        raise ConfigError(
            f"decode_attention: sequences.starts {starts.shape}, lengths {lengths.shape} and table"
            f" {table.shape} do not fit: [S + 1], [S] and [S, M] are wanted"
        )
    for name, given in zip(sequences._fields, sequences, strict=True):
        if not jnp.issubdtype(given.dtype, jnp.integer):
            raise ConfigError(
                f"decode_attention: sequences.{name} must be integers, not {given.dtype}"
            )


def preferred(call: Call, device: Device) -> Sequence[tuple[str, str]]:
    """Whom to try, best first, and why."""
    batched = ("xla", "all sequences at once, a few pages of each at a time")
    if device.platform == "tpu":
        return [("tpu", "pages are copied in while others are used"), batched]
    if device.platform == "gpu":
        return [("triton", "contexts are split over many programs"), batched]
    return [batched]


OPERATION = Operation(
    "decode attention",
    {
        "reference": Implementation(reference),
        "xla": Implementation(paged),
        "tpu": Implementation(kernel, refused_by_tpu, platforms=("tpu",), kernel=True),
        "triton": Implementation(triton, refused_by_triton, platforms=("gpu",), kernel=True),
    },
    preferred,
)
