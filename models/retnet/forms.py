"""The three forms of retention, and what TorchScale divides each by.

All three are one function of queries, keys and values: token t gets
Σ_{s≤t} γ^(t−s) (q_t · k_s) v_s. They differ in what they cost, and, in TorchScale, in a number per
token and head by which this sum is divided before its head is normalised (by its root mean square,
without a weight):

    none        1, in every form: the forms are equal whatever the norm's epsilon
    decay       √z with z = Σ_{i≤p} γ^i at position p, in every form: the paper's D / √ΣD
    torchscale  what the form of the package torchscale 0.3.0 divides by
        Parallel   max(√z, |Σ_s γ^(t−s) q_t · k_s|): the paper's R / max(|ΣR|, 1) after D / √ΣD
        Recurrent  √z
        Chunkwise  max(w, w · m, Σ_s |γ^(t−s) q_t · k_s|) with s in the chunk of t, the t-th token
                   of it; w = √Σ_{i≤t} γ^i, and m the largest over values of Σ over keys of
                   |state| / Σ_{i<places} γ^i, of the state before the chunk

No gradient flows through any of them. The head's norm takes every such factor away, but for its
epsilon: with a scale, what it adds to the mean square is epsilon times the factor squared. So the
forms of "torchscale" are equal only as far as epsilon is small.
Source: Sun et al. 2023, arXiv 2307.08621, section 2.
"""

# B batch, T length, N heads, H key size, V value size, C places in a chunk, M chunks.

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels.retention import retention
from jscale.pallas_kernels.retention.reference import parallel

SCALES = ("none", "decay", "torchscale")
Results = tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]


def check_scale(name: str) -> None:
    if name not in SCALES:
        raise ConfigError(f"no scale {name!r} of retention; {did_you_mean(name, SCALES)}")


@dataclass(frozen=True)
class Given:
    """Queries, keys, values and log γ; the state before; the runs of a packed row, 0, 1, …."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T N H"]
    v: Float[Array, "B T N V"]
    decay: Float[Array, " N"]
    state: Float[Array, "B N H V"] | None = None
    runs: Int[Array, "B T"] | None = None


Retain = Callable[[Given], Results]  # the form itself, on whatever devices it runs


@dataclass(frozen=True)
class Parallel:
    """All scores of a row at once: time and memory grow with the square of the length."""

    scale: str = "none"  # what is divided by: none, decay, torchscale

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def run(self, x: Given) -> Results:
        """What each token gets, and the state after the last."""
        (B, _, N, H), V = x.q.shape, x.v.shape[-1]
        state = jnp.zeros((B, N, H, V)) if x.state is None else x.state
        return parallel(x.q, x.k, x.v, x.decay, state, x.runs)

    def torchscale(
        self, x: Given, positions: Int[Array, "B T"], retain: Retain
    ) -> Float[Array, "B T N"]:
        """The factor of TorchScale's form."""
        sums, _ = retain(replace(x, v=jnp.ones_like(x.v[..., :1])))
        return jnp.maximum(jnp.abs(sums[..., 0]), root(x.decay, positions + 1))


@dataclass(frozen=True)
class Recurrent:
    """One token after another: what decoding does, and slow for whole rows."""

    scale: str = "none"  # what is divided by: none, decay, torchscale

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def run(self, x: Given) -> Results:
        """What each token gets, and the state after the last."""
        given = x.q, x.k, x.v, x.decay
        return retention(*given, state=x.state, segments=x.runs, implementation="reference")

    def torchscale(
        self, x: Given, positions: Int[Array, "B T"], retain: Retain
    ) -> Float[Array, "B T N"]:
        """The factor of TorchScale's form."""
        return root(x.decay, positions + 1)


@dataclass(frozen=True)
class Chunkwise:
    """Scores within chunks, a state between them: time and memory grow with the length.

    The size of the chunks is the kernel's affair, and changes no number. TorchScale's factor does
    depend on it: `places` is for that.
    """

    scale: str = "none"  # what is divided by: none, decay, torchscale
    places: int = 512  # in a chunk of TorchScale's, for its factor alone

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.places < 1:
            raise ConfigError(f"a chunk needs at least 1 place, not {self.places}")

    def run(self, x: Given) -> Results:
        """What each token gets, and the state after the last."""
        return retention(x.q, x.k, x.v, x.decay, state=x.state, segments=x.runs)

    def torchscale(
        self, x: Given, positions: Int[Array, "B T"], retain: Retain
    ) -> Float[Array, "B T N"]:
        """The factor of TorchScale's form, in chunks that count from the start of the row."""
        return _by_chunks(x, self.places)


Form = Parallel | Recurrent | Chunkwise


def root(decay: Float[Array, " N"], count: Int[Array, "*B"]) -> Float[Array, "*B N"]:
    """√(1 + γ + … + γ^(count−1))."""
    exponent = count[..., None].astype(jnp.float32)
    return jnp.sqrt(jnp.expm1(exponent * decay) / jnp.expm1(decay))


def _by_chunks(x: Given, places: int) -> Float[Array, "B T N"]:
    (B, T, N, H), V, C = x.q.shape, x.v.shape[-1], places
    runs = jnp.zeros((B, T), jnp.int32) if x.runs is None else x.runs
    chunks = [_split(a.astype(jnp.float32), C) for a in (x.q, x.k, x.v)]
    marks = _split(runs, C, mode="edge")
    place = jnp.arange(C)
    back = place[:, None] - place
    powers = x.decay[:, None, None] * jnp.maximum(back, 0).astype(jnp.float32)
    fade = jnp.where(back >= 0, jnp.exp(powers), 0.0)
    inner = root(x.decay, place + 1)  # [C, N]
    whole = jnp.square(root(x.decay, jnp.asarray(C)))  # [N]

    def step(carry: tuple[Array, Array], chunk: Any) -> tuple[tuple[Array, Array], Array]:
        state, last = carry
        q, k, v, runs = chunk
        together = (runs[:, :, None] == runs[:, None, :])[:, None]
        scores = jnp.abs(jnp.einsum("btnh,bsnh->bnts", q, k) * jnp.where(together, fade, 0.0))
        before = jnp.abs(state / whole[:, None, None]).sum(-2).max(-1)[:, None]  # [B, 1, N]
        found = jnp.maximum(scores.sum(-1).swapaxes(1, 2), inner * jnp.maximum(before, 1.0))
        _, state = parallel(q, k, v, x.decay, state, runs - last[:, None])
        return (state, runs[:, -1]), found

    start = jnp.zeros((B, N, H, V)), jnp.zeros(B, jnp.int32)
    _, found = lax.scan(step, start, (*chunks, marks))
    return found.swapaxes(0, 1).reshape(B, -1, N)[:, :T]


def _split(x: Array, size: int, mode: str = "constant") -> Array:
    """Chunks first, the last one filled up."""
    B, T = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -T % size), *[(0, 0)] * (x.ndim - 2)), mode=mode)
    return x.reshape(B, -1, size, *x.shape[2:]).swapaxes(0, 1)
