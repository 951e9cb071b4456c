"""The one signature of retention, and the choice of who computes it."""

# B batch, T length, N heads, H key size, V value size.

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.implementation import Implementation, Operation
from jscale.pallas_kernels.retention.reference import reference
from jscale.pallas_kernels.retention.tpu import kernel, unfit
from jscale.pallas_kernels.retention.triton import triton
from jscale.pallas_kernels.retention.triton import unfit as unfit_for_triton
from jscale.pallas_kernels.retention.xla import chunked

LEAST = -1e30  # the log of a decay of 0: 0 times −∞ is not a number


class Call(NamedTuple):
    """What an implementation may refuse, and a choice may depend on."""

    rows: int
    length: int
    heads: int
    head: int
    value: int
    dtype: str
    segments: bool = False

    def __str__(self) -> str:
        return f"{self.length} tokens, {self.heads} heads of {self.head}, {self.dtype}"


def retention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N V"],
    decay: Float[Array, " N"],
    *,
    state: Float[Array, "B N H V"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
    """(q kᵀ ⊙ D) v with D_ts = γ^(t−s) for s ≤ t, else 0, and the state Σ_s γ^(T−1−s) k_s v_sᵀ.

    `decay` is log γ of each head, at most 0: γ itself cannot tell 1 − 2⁻³⁰ from 1. It is a
    constant, no gradient flows to it. `state` is that of the tokens before, float32, 0 by default;
    it adds γ^(t+1) q_t · state, so that a sequence may come in pieces, or token by token. Where
    `segments` change along a row, the state starts again from 0; the first of a row goes on from
    `state`. The result is of `q`'s dtype; the state is float32, and has a gradient.

    What TorchScale divides by, per token and head, is not here: it has no gradient, and the
    normalisation of each head after it takes any such factor away. Nor are rotations and scales
    of keys: both are the model's. `implementation=None` chooses, and logs what and why.
    Source: Sun et al. 2023, arXiv 2307.08621.

    Raises:
        ConfigError: sizes that do not fit, an unknown implementation or one that cannot.
    """
    _check(q, k, v, decay, state, segments)
    (B, T, N, H), V = q.shape, v.shape[-1]
    call = Call(B, T, N, H, V, str(q.dtype), segments is not None)
    run = OPERATION.pick(call, implementation).run
    decay = jnp.maximum(jax.lax.stop_gradient(decay).astype(jnp.float32), LEAST)
    start = jnp.zeros((B, N, H, V)) if state is None else state.astype(jnp.float32)
    if T == 0:
        return jnp.zeros((B, 0, N, V), q.dtype), start
    return run(q, k, v, decay, start, None if segments is None else count(segments))


def count(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """0, 1, … for each run of equal segments of a row."""
    changes = segments[:, 1:] != segments[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0))).cumsum(1, dtype=jnp.int32)


def _check(
    q: Array, k: Array, v: Array, decay: Array, state: Array | None, segments: Array | None
) -> None:
    (B, T, N, H), V = q.shape, v.shape[-1]
    if k.shape != q.shape or v.shape[:3] != (B, T, N):
        raise ConfigError(
            f"retention: q {q.shape}, k {k.shape} and v {v.shape} do not fit:"
            " [B, T, N, H] twice and [B, T, N, V] are wanted"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ConfigError(
            f"retention: q, k and v must be of one dtype, not {q.dtype}, {k.dtype} and {v.dtype}"
        )
    wanted = {"decay": (N,), "state": (B, N, H, V), "segments": (B, T)}
    for (name, shape), given in zip(wanted.items(), (decay, state, segments), strict=True):
        if given is not None and given.shape != shape:
            raise ConfigError(f"retention: {name} {given.shape} must be of the shape {shape}")


def preferred(call: Call, device: Device) -> Sequence[tuple[str, str]]:
    """Whom to try, best first, and why."""
    chunks = ("xla", "chunks are products of matrices, and hold no scores of the whole")
    if device.platform == "tpu":
        return [("tpu", "keeps the state on the chip from chunk to chunk"), chunks]
    if device.platform == "gpu":
        return [("triton", "keeps the state in registers from chunk to chunk"), chunks]
    return [chunks]


OPERATION = Operation(
    "retention",
    {
        "reference": Implementation(reference),
        "xla": Implementation(chunked),
        "tpu": Implementation(kernel, unfit, platforms=("tpu",), kernel=True),
        "triton": Implementation(triton, unfit_for_triton, platforms=("gpu",), kernel=True),
    },
    preferred,
)
