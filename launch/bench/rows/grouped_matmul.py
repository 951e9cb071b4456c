"""Grouped matmul: ours, XLA's ragged product, and loops over groups, of sizes known or not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    differentiable,
    draw,
    exactly,
    ours,
    picked,
)
from jscale.launch.bench.tune import Target
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.grouped_matmul import tpu, triton
from jscale.pallas_kernels.grouped_matmul.choice import OPERATION, Call, grouped_matmul
from jscale.pallas_kernels.grouped_matmul.tiles import TUNABLES, Extent
from jscale.pallas_kernels.tiles.tunable import Tunable

MOST = 16  # groups up to which every matrix on every row is worth the wait


@dataclass(frozen=True)
class Case:
    """A call; groups are of unequal sizes, as routers make them."""

    rows: int = 4096
    inner: int = 256
    outer: int = 512
    groups: int = 16
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows of {self.inner:,}, {self.groups} matrices to {self.outer:,},"
            f" {self.dtype}"
        )

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each group, the same every time."""
        random = np.random.default_rng(0)
        return random.multinomial(self.rows, random.dirichlet(np.full(self.groups, 4.0)))


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """The experts of Qwen3-30B-A3B and of Mixtral on accelerators."""
    if quick:
        return [Case(96, 16, 32, 4, "float32" if platform == "cpu" else "bfloat16")]
    if platform == "cpu":
        return [Case(dtype="float32"), Case(4096, 512, 1408, 8, "float32")]
    return [Case(131_072, 2048, 768, 128), Case(32_768, 4096, 14_336, 8)]


def inputs(case: Case) -> dict[str, Any]:
    """Rows, matrices scaled by 1/√D, and the sizes of groups."""
    shapes = {"x": (case.rows, case.inner), "w": (case.groups, case.inner, case.outer)}
    drawn = draw(shapes, case.dtype)
    scaled = drawn["w"] * drawn["w"].dtype.type(case.inner**-0.5)
    return {"x": drawn["x"], "w": scaled, "sizes": jnp.asarray(case.sizes, jnp.int32)}


def work(case: Case) -> dict[str, Work]:
    """One product forward and two backward, every array read or written once."""
    forward = 2.0 * case.rows * case.inner * case.outer
    numbers = case.rows * (case.inner + case.outer) + case.groups * case.inner * case.outer
    bytes = float(jnp.dtype(case.dtype).itemsize * numbers)
    return {
        "forward": Work(forward, bytes),
        "backward": Work(2 * forward, 2 * bytes),
        "training": Work(3 * forward, 3 * bytes),
    }


def run(name: str) -> Callable[..., Any]:
    """An implementation as a function."""
    return lambda x, w, sizes: grouped_matmul(x, w, sizes, implementation=name)


def one_by_one(case: Case) -> Callable[..., Any]:
    """A product a group, of sizes that a program can only know if they never change."""
    ends = np.cumsum(case.sizes)
    return lambda x, w, sizes: jnp.concatenate(
        [part @ w[e] for e, part in enumerate(jnp.split(x, ends[:-1]))]
    )


def in_turn(case: Case) -> Callable[..., Any]:
    """A product a group, of as many rows as the largest has, what is not its own left out."""
    most = int(case.sizes.max())

    def one(x: Any, w: Any, sizes: Any) -> Any:
        starts = jnp.cumsum(sizes) - sizes
        x = jnp.pad(x, [(0, most), (0, 0)])
        out = jnp.zeros((x.shape[0], w.shape[2]), x.dtype)
        for e in range(case.groups):
            mine = (jnp.arange(most) < sizes[e])[:, None]
            y = lax.dynamic_slice_in_dim(x, starts[e], most) @ w[e]
            old = lax.dynamic_slice_in_dim(out, starts[e], most)
            out = lax.dynamic_update_slice_in_dim(out, jnp.where(mine, y, old), starts[e], 0)
        return out[: case.rows]

    return one


def ragged(x: Any, w: Any, sizes: Any) -> Any:
    """XLA's own, its sums in float32."""
    return jax.lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.float32).astype(x.dtype)


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """By one product a group."""
    return exactly(one_by_one(case), given)


def call(case: Case) -> Call:
    """The case as implementations see it."""
    sizes = case.rows, case.inner, case.outer, case.groups
    return Call(*sizes, case.dtype, case.dtype)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours by name."""
    many = case.groups > MOST
    too_much = f"multiplies every row by {case.groups} matrices" if many else None
    return ours(OPERATION, call(case), run, too_much)


def rivals(case: Case) -> dict[str, Contender | str]:
    """XLA's ragged product, and products group by group."""
    return {
        "jax ragged_dot": differentiable(ragged),
        "loop over groups": differentiable(in_turn(case)),
        "loop, sizes known": differentiable(one_by_one(case)),
    }


def chosen(case: Case) -> str:
    """Whom jscale chooses."""
    return picked(OPERATION, call(case))


def targets(case: Case, where: Device) -> list[Target]:
    """The kernels that run on the device."""
    sizes = case.rows, case.inner, case.outer, case.groups
    extent = Extent(*sizes, case.dtype, case.dtype)
    kernels = {"tpu": tpu.kernel, "triton": triton.kernel}

    def target(tunable: Tunable) -> Target:
        kernel = kernels[tunable.implementation]
        return Target(
            tunable, extent, lambda size: lambda x, w, sizes: kernel(x, w, sizes, None, size)
        )

    by = OPERATION.implementations
    here = [t for t in TUNABLES if by[t.implementation].obstacle(call(case), where) is None]
    return [target(tunable) for tunable in here]


SUBJECT = Subject(
    *("grouped_matmul", Case, cases, inputs, work, values, contenders, chosen),
    rivals=rivals,
    targets=targets,
)
