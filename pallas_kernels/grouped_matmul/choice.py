"""The one signature of grouped matmul, and the choice of who computes it."""

# R rows given, M rows taken, D their size, F that of the result, E groups (experts).

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.grouped_matmul import tpu, triton
from jscale.pallas_kernels.grouped_matmul.reference import reference
from jscale.pallas_kernels.grouped_matmul.xla import by_blocks
from jscale.pallas_kernels.implementation import Implementation, Operation


class Call(NamedTuple):
    """What an implementation may refuse, and a choice may depend on."""

    rows: int
    inner: int
    outer: int
    groups: int
    dtype: str
    weights: str
    gathered: bool = False

    def __str__(self) -> str:
        taken = "gathered rows" if self.gathered else "rows"
        dtypes = self.dtype if self.dtype == self.weights else f"{self.dtype} by {self.weights}"
        return f"{self.rows} {taken} by {self.groups} of {self.inner}×{self.outer}, {dtypes}"


def grouped_matmul(
    x: Float[Array, "R D"],
    w: Float[Array, "_ _ F"],
    sizes: Int[Array, " _"],
    *,
    rows: Int[Array, " M"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "M F"]:
    """out[m] = x[rows[m]] · w[e] where row m belongs to group e; products summed in float32.

    Groups follow one another: the first `sizes[0]` rows are of group 0, and so on; sizes may be 0
    or all, and their sum at most M. Rows after the last group give 0 and are never read. Without
    `rows`, they are those of x in order (M = R); with them, which must be of x where they are of a
    group, x's gradient is summed in float32. The result is in x's dtype, w's gradient in w's.
    Source: Gale et al. 2022, MegaBlocks, arXiv 2211.15841.

    Raises:
        ConfigError: sizes that do not fit, an unknown implementation or one that cannot.
    """
    _check(x, w, sizes, rows)
    M = x.shape[0] if rows is None else rows.shape[0]
    E, D, F = w.shape
    call = Call(M, D, F, E, str(x.dtype), str(w.dtype), rows is not None)
    return OPERATION.pick(call, implementation).run(x, w, sizes, rows)


def _check(x: Array, w: Array, sizes: Array, rows: Array | None) -> None:
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1]:
        raise ConfigError(
            f"grouped_matmul: x {x.shape} and w {w.shape} do not fit: [R, D] and [E, D, F] are"
            " wanted"
        )
    for name, given in (("x", x), ("w", w)):
        if not jnp.issubdtype(given.dtype, jnp.floating):
            raise ConfigError(f"grouped_matmul: {name} must be real numbers, not {given.dtype}")
    for name, given, wanted in (("sizes", sizes, (w.shape[0],)), ("rows", rows, None)):
        if given is None:
            continue
        if not jnp.issubdtype(given.dtype, jnp.integer):
            raise ConfigError(f"grouped_matmul: {name} must be integers, not {given.dtype}")
        if given.ndim != 1 or (wanted and given.shape != wanted):
            form = f"[{w.shape[0]}], one a group" if wanted else "[M]"
            raise ConfigError(f"grouped_matmul: {name} {given.shape} must be {form}")


def preferred(call: Call, device: Device) -> Sequence[tuple[str, str]]:
    """Whom to try, best first, and why."""
    plain = ("xla", "groups filled up to blocks are one batched product")
    if device.platform == "tpu":
        return [("tpu", "tiles of rows meet their groups' matrices in vector memory"), plain]
    if device.platform == "gpu":
        return [("triton", "rows are taken where they are multiplied"), plain]
    return [plain]


OPERATION = Operation(
    "grouped matmul",
    {
        "reference": Implementation(reference),
        "xla": Implementation(by_blocks, loops=True),
        "tpu": Implementation(tpu.kernel, tpu.refuses, platforms=("tpu",), kernel=True),
        "triton": Implementation(triton.kernel, triton.refuses, platforms=("gpu",), kernel=True),
    },
    preferred,
)
