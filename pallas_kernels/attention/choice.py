"""The one signature of attention, and the choice of who computes it."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention.cudnn import cudnn
from jscale.pallas_kernels.attention.cudnn import refuses as refused_by_cudnn
from jscale.pallas_kernels.attention.dense import dense
from jscale.pallas_kernels.attention.mask import CAUSAL, Mask
from jscale.pallas_kernels.attention.mosaic_blackwell import mosaic_blackwell
from jscale.pallas_kernels.attention.mosaic_blackwell import refuses as refused_by_mosaic_blackwell
from jscale.pallas_kernels.attention.mosaic_gpu import mosaic_gpu
from jscale.pallas_kernels.attention.mosaic_gpu import refuses as refused_by_mosaic_gpu
from jscale.pallas_kernels.attention.places import ALIGNED, Pair, Places
from jscale.pallas_kernels.attention.reference import reference
from jscale.pallas_kernels.attention.scores import PLAIN, Scores
from jscale.pallas_kernels.attention.sinks import afterwards
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.tpu import refuses as refused_by_tpu
from jscale.pallas_kernels.attention.triton import refuses as refused_by_triton
from jscale.pallas_kernels.attention.triton import triton
from jscale.pallas_kernels.attention.xla import blockwise
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.implementation import Implementation, Operation


class Call(NamedTuple):
    """What an implementation may refuse, and a choice may depend on."""

    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head: int
    value: int
    dtype: str
    mask: Mask = CAUSAL
    cap: float | None = None
    bias: tuple[int, ...] | None = None
    slopes: bool = False
    sinks: bool = False
    positions: bool = False
    segments: bool = False
    lse: bool = False  # whether the log-sum-exp is wanted too

    def __str__(self) -> str:
        return (
            f"{self.queries} queries and {self.keys} keys, {self.heads} heads over {self.kv_heads}"
            f" of {self.head}, {self.dtype}"
        )


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask = CAUSAL,
    *,
    scores: Scores = PLAIN,
    positions: Pair | None = None,
    segments: Pair | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N V"]:
    """Grouped-query attention, softmax(q kᵀ / √H) v, softmax in float32.

    `scores` says what becomes of q kᵀ before the softmax. `positions` are those of the queries and
    of the keys; by default 0, 1, … aligned at the end, and then what the mask hides costs no time.
    `segments` likewise: a query sees keys of its own segment only. A query that may see no key
    gives 0. `implementation=None` chooses by device, shape and dtype, and logs what and why.
    Source: Ainslie et al. 2023, arXiv 2305.13245.

    Raises:
        ConfigError: sizes or dtypes that do not fit, heads that are not a multiple of the key/value
            heads, more queries than keys without positions, an unknown implementation or one that
            cannot.
    """
    return _run(q, k, v, mask, scores, Places(positions, segments), implementation, False)[0]


def attention_with_lse(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask = CAUSAL,
    scores: Scores = PLAIN,
    places: Places = ALIGNED,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """`attention`, and the log Σ exp of each query's scores in float32, sinks among them.

    Both have gradients, so that results over parts of the keys can be merged (`merge`). Where a
    query sees nothing the log Σ exp is −1e30, or its sink. Raises as `attention`.
    """
    return _run(q, k, v, mask, scores, places, implementation, True)


def _run(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    scores: Scores,
    places: Places,
    named: str | None,
    lse: bool,
) -> tuple[Any, Any]:
    _check(q, k, v, scores, places)
    (B, T, N, H), (S, K), V = q.shape, k.shape[1:3], v.shape[-1]
    call = Call(
        *(B, T, S, N, K, H, V, str(q.dtype), mask, scores.cap),
        bias=None if scores.bias is None else scores.bias.shape,
        slopes=scores.slopes is not None,
        sinks=scores.sinks is not None,
        positions=places.positions is not None,
        segments=places.segments is not None,
        lse=lse,
    )
    return OPERATION.pick(call, named).run(q, k, v, mask, scores, places)


def merge(
    first: tuple[Float[Array, "B T N V"], Float[Array, "B T N"]],
    second: tuple[Float[Array, "B T N V"], Float[Array, "B T N"]],
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """The result over all keys from those over two parts of them, in the first's dtype."""
    (out, lse), (other, more) = first, second
    total = jnp.logaddexp(lse, more)
    share = lambda x, part: x.astype(jnp.float32) * jnp.exp(part - total)[..., None]
    return (share(out, lse) + share(other, more)).astype(out.dtype), total


def _check(q: Array, k: Array, v: Array, scores: Scores, places: Places) -> None:
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    if k.shape != (B, S, K, H) or v.shape[:3] != (B, S, K):
        raise ConfigError(
            f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit:"
            " [B, T, N, H], [B, S, K, H] and [B, S, K, V] are wanted"
        )
    if not jnp.issubdtype(q.dtype, jnp.floating) or not q.dtype == k.dtype == v.dtype:
        raise ConfigError(
            f"attention: q {q.dtype}, k {k.dtype} and v {v.dtype} must be of one floating dtype"
        )
    if not K or N % K:
        raise ConfigError(f"attention: {N} query heads are not a multiple of {K} key/value heads")
    if places.positions is None and T > S:
        raise ConfigError(f"attention: {T} queries and {S} keys cannot be aligned: give positions")
    for name, pair in (("positions", places.positions), ("segments", places.segments)):
        if pair is not None and (pair[0].shape, pair[1].shape) != ((B, T), (B, S)):
            raise ConfigError(
                f"attention: {name} {pair[0].shape} and {pair[1].shape} must be [B, T] and [B, S],"
                f" {(B, T)} and {(B, S)}"
            )
    for name in ("slopes", "sinks"):
        given = getattr(scores, name)
        if given is not None and given.shape != (N,):
            raise ConfigError(f"attention: scores.{name} {given.shape} must be of {N} heads")
    bias = scores.bias
    if bias is not None and (
        bias.ndim != 4
        or bias.shape[0] not in (1, B)
        or bias.shape[1] not in (1, N)
        or bias.shape[2:] != (T, S)
    ):
        raise ConfigError(
            f"attention: scores.bias {bias.shape} must be [B or 1, N or 1, T, S] with B={B}, N={N},"
            f" T={T}, S={S}"
        )


LONG = 128  # queries from which tiles won, forward and backward, on CPU


def preferred(call: Call, device: Device) -> Sequence[tuple[str, str]]:
    """Whom to try, best first, and why."""
    if call.queries < LONG:
        return [("dense", f"fewer than {LONG} queries are not worth tiles")]
    if device.platform == "gpu":
        return [
            ("cudnn", "NVIDIA's own kernels"),
            ("triton", "tiles that stay in registers"),
            ("xla", "so many queries are worth tiles"),
        ]
    if device.platform == "tpu":
        return [
            ("tpu", "tiles that stay in vector memory"),
            ("xla", "so many queries are worth tiles"),
        ]
    return [("xla", "so many queries are worth tiles")]


OPERATION = Operation(
    "attention",
    {
        "reference": Implementation(afterwards(reference)),
        "dense": Implementation(afterwards(dense)),
        "xla": Implementation(afterwards(blockwise), loops=True),
        "tpu": Implementation(flash, refused_by_tpu, platforms=("tpu",), kernel=True),
        "triton": Implementation(triton, refused_by_triton, platforms=("gpu",), kernel=True),
        "cudnn": Implementation(cudnn, refused_by_cudnn, platforms=("gpu",), kernel=True),
        "mosaic_gpu": Implementation(
            *(afterwards(mosaic_gpu, widened=False), refused_by_mosaic_gpu),
            platforms=("gpu",),
            kernel=True,
            proven=False,
        ),
        "mosaic_blackwell": Implementation(
            *(afterwards(mosaic_blackwell, widened=False), refused_by_mosaic_blackwell),
            platforms=("gpu",),
            kernel=True,
            proven=False,
        ),
    },
    preferred,
)
