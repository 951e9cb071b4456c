"""Attention of whole rows to themselves: ours, JAX's, cuDNN's, tokamax's, PyTorch's."""

# B batch, T length, N heads, K key/value heads, H head size.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.launch.bench.rivals import attention as rivals
from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    draw,
    exactly,
    ours,
    picked,
)
from jscale.launch.bench.tune import Target
from jscale.pallas_kernels.attention import PLAIN, Mask, Places, attention
from jscale.pallas_kernels.attention.choice import OPERATION, Call
from jscale.pallas_kernels.attention.reference import reference
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.triton import triton
from jscale.pallas_kernels.attention.tuned import TUNABLES, Extent
from jscale.pallas_kernels.attention.xla import blockwise
from jscale.pallas_kernels.device import Device, device
from jscale.pallas_kernels.tiles.tunable import Tunable

MOST = 4 * 2**30  # bytes of scores that the reference may hold when it is timed


@dataclass(frozen=True)
class Case:
    """A call; `window` as in `Mask`."""

    rows: int = 2
    length: int = 2048
    heads: int = 8
    kv_heads: int = 8
    head: int = 64
    causal: bool = True
    window: int | None = None
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        near = "" if self.window is None else f", window {self.window:,}"
        shared = "" if self.heads == self.kv_heads else f" over {self.kv_heads}"
        return (
            f"{kind}{near}, {self.rows} × {self.length:,} tokens, {self.heads} heads{shared}"
            f" of {self.head}, {self.dtype}"
        )

    @property
    def mask(self) -> Mask:
        return Mask(self.causal, self.window)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, in one row of one head."""
        T, w = self.length, min(self.window or self.length, self.length)
        before = T * w - w * (w - 1) // 2  # of a key that is not after its query
        return before if self.causal else 2 * before - T


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """On accelerators 16,384 tokens of 2,048 features each, as in papers on attention."""
    if quick:
        return [Case(1, 256, 2, 1, 32, dtype="float32" if platform == "cpu" else "bfloat16")]
    if platform == "cpu":
        small = partial(Case, dtype="float32")
        return [small(8, 512), small(2, 2048), small(2, 2048, window=256)]
    wide = lambda length, heads, head, **more: Case(
        16_384 // length, length, heads, more.pop("kv_heads", heads), head, **more
    )
    return [
        wide(8192, 16, 128),
        wide(2048, 16, 128),
        wide(8192, 16, 128, kv_heads=4),
        wide(8192, 16, 128, causal=False),
        wide(8192, 16, 128, window=1024),
        wide(8192, 32, 64),
    ]


def inputs(case: Case) -> dict[str, Any]:
    """Queries, keys and values."""
    B, T, N, K, H = case.rows, case.length, case.heads, case.kv_heads, case.head
    return draw({"q": (B, T, N, H), "k": (B, T, K, H), "v": (B, T, K, H)}, case.dtype)


def work(case: Case) -> dict[str, Work]:
    """Two products forward and five backward (Dao 2023), over the pairs that are seen."""
    forward = 4.0 * case.rows * case.heads * case.pairs * case.head
    width = jnp.dtype(case.dtype).itemsize
    queries = float(width * case.rows * case.length * case.heads * case.head)
    keys = queries * case.kv_heads / case.heads
    return {
        "forward": Work(forward, 2 * queries + 2 * keys),
        "backward": Work(2.5 * forward, 4 * queries + 4 * keys),
        "training": Work(3.5 * forward, 6 * queries + 6 * keys),
    }


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By the reference, of one row and one key/value head at a time."""

    def of(
        q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> Float[Array, "B T N H"]:
        (B, T, N, H), K = q.shape, k.shape[2]
        apart = lambda x: (
            x.reshape(B, T, K, -1, H).transpose(0, 2, 1, 3, 4).reshape(B * K, T, -1, H)
        )

        @jax.checkpoint
        def one(x: tuple[Array, Array, Array]) -> Array:
            q, k, v = (y[None] for y in x)
            return reference(q, k, v, case.mask, PLAIN, Places())[0][0]

        out = jax.lax.map(one, (apart(q), apart(k), apart(v)))
        return out.reshape(B, K, T, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)

    return exactly(of, given)


def call(case: Case) -> Call:
    """The case as implementations see it."""
    sizes = case.rows, case.length, case.length, case.heads, case.kv_heads, case.head, case.head
    return Call(*sizes, case.dtype, case.mask)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    scores = 4 * case.rows * case.heads * case.length**2
    too_much = f"holds {scores / 2**30:.0f} GiB of scores" if scores > MOST else None
    return ours(OPERATION, call(case), partial(run, case), too_much)


def run(case: Case, name: str) -> Callable[..., Array]:
    """An implementation of ours, as a function."""
    return lambda q, k, v: attention(q, k, v, case.mask, implementation=name)


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return picked(OPERATION, call(case))


def targets(case: Case, where: Device) -> list[Target]:
    """The kernels with tiles that run here; where there is none, XLA's form."""
    sizes = case.length, case.length, case.head, case.head
    extent = Extent(*sizes, case.dtype)
    runs = {"xla": blockwise, "tpu": flash, "triton": triton}

    def target(tunable: Tunable) -> Target:
        one = runs[tunable.implementation]
        of = lambda size: lambda q, k, v: one(q, k, v, case.mask, PLAIN, Places(), size)[0]
        return Target(tunable, extent, of)

    by = OPERATION.implementations
    here = [t for t in TUNABLES if by[t.implementation].obstacle(call(case), where) is None]
    kernels = [t for t in here if by[t.implementation].kernel]
    return [target(tunable) for tunable in kernels or here]


SUBJECT = Subject(
    *("attention", Case, cases, inputs, work, values, contenders, chosen),
    rivals=lambda case: rivals.contenders(case, device().platform),
    targets=targets,
)
