"""What the Mosaic-GPU kernels of attention share: warpgroups, their buffers, products and scores.

A block has warpgroups that compute and one that copies: it fills a ring of tiles in shared memory
through the tensor memory accelerator, which reads zeros beyond an array and writes nothing there.
Which tiles are visited, and which of them need a mask, is told as to the Triton kernels.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.attention.triton_tiles import LOG2E, Arrays, Given, Lift, Problem
from jscale.pallas_kernels.block import up

COPIER, COMPUTING = 2, 2  # the number of the warpgroup that copies; how many compute
ROWS = 64  # of a tile that a warpgroup computes: those of one instruction
WGMMA = plgpu.Layout.WGMMA
DOWN, ACROSS = WGMMA.reduce(1), WGMMA.reduce(0)  # numbers of each row, and of each column
HOPPER = ("H100", "H200", "H800", "H20", "GH200")
# Registers of a thread, of 65,536 in all: 2 · 128 · 232 + 128 · 40 is less.
MANY, FEW = 232, 40


def shared(*shape: int, dtype: Any) -> Any:
    """A buffer in shared memory, laid out for tensor cores where it holds matrices."""
    if dtype in (jnp.float32, jnp.int32):
        return plgpu.SMEM(shape, dtype)
    laid = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=laid)


def call(
    body: Callable[..., None],
    grid: dict[str, int],
    arrays: Any,
    out: Sequence[Any],
    scratch: Sequence[Any],
    name: str,
    computing: int = COMPUTING,
) -> list[Any]:
    """Run `body(arrays, outs, scratch)` with references, in every block of the grid.

    A block has as many warpgroups that compute, and one that copies.
    """
    leaves, tree = jax.tree.flatten(arrays)

    def kernel(*refs: Any) -> None:
        given, rest = refs[: len(leaves)], refs[len(leaves) :]
        body(jax.tree.unflatten(tree, given), rest[: len(out)], rest[len(out) :])

    kernel.__name__ = name
    return plgpu.kernel(
        kernel,
        out_type=list(out),
        scratch_types=list(scratch),
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=computing + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=interpret.mosaic_gpu(),
    )(*leaves)


def gather(
    p: Problem, found: Any, size: tuple[int, int], inputs: Any, given: Given, *more: Any
) -> Arrays:
    """The arrays of a kernel; numbers of each query or key are filled up to whole tiles.

    Matrices are filled up to a multiple of 8, whole rows of tensor cores. Interpreted, they too are
    filled up to tiles: there, copies do not end where an array does.
    """
    T, S = up(p.queries, size[0]), up(p.keys, size[1])
    positions, segments = (
        None
        if pair is None
        else tuple(fill(x.astype(jnp.int32), 1, n) for x, n in zip(pair, (T, S), strict=True))
        for pair in given.places
    )
    tall = lambda x, n, step: fill(x, 1, length(p, n, step))
    q, k, v = inputs
    dout, lse, delta = more or (None, None, None)
    number = lambda x: None if x is None else fill(x, 2, T)
    return Arrays(
        visits=jnp.asarray(found).reshape(-1),
        q=tall(q, p.queries, size[0]),
        k=tall(k, p.keys, size[1]),
        v=tall(v, p.keys, size[1]),
        positions=positions,
        segments=segments,
        slopes=given.slopes,
        dout=None if dout is None else tall(dout, p.queries, size[0]),
        lse=number(lse),
        delta=number(delta),
    )


def fill(x: Any, axis: int, size: int) -> Any:
    """Zeros added at the end of an axis up to a size."""
    if x.shape[axis] == size:
        return x
    return jnp.pad(x, [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)])


def length(p: Problem, real: int, step: int) -> int:
    """How long a matrix is made for a kernel that takes `step` rows of it at a time."""
    return up(real, step if p.interpret else 8)


def bounds(arrays: Arrays, p: Problem, tiles: int, i: Any) -> list[Any]:
    """The four bounds of the tiles that tile i visits (`visits`)."""
    alike = arrays.visits.shape[0] == tiles * 4
    start = i * 4 if alike else (lax.axis_index("row") * tiles + i) * 4
    return [arrays.visits[start + at] for at in range(4)]


class Ring(NamedTuple):
    """Tiles in shared memory: filled by the warpgroup that copies, freed by those that compute."""

    buffers: Any  # each [stages, …]
    full: Any
    free: Any  # one barrier for all buffers, or one for each

    def fill(self, steps: Any, copies: Callable[[Any], Any]) -> None:
        """Copy all steps, each as soon as there is room, and wait until all was used.

        `copies(step)` are sources in the order of the buffers.
        """
        stages = self.buffers[0].shape[0]

        def step(n: Any, _: None) -> None:
            slot = lax.rem(n, jnp.int32(stages))
            each = list(zip(copies(n), self.buffers, self.full, strict=True))
            size = len(each) // len(self.free)  # buffers of a barrier
            for at, free in enumerate(self.free):

                @pl.when(n >= stages)
                def _(free: Any = free) -> None:
                    plgpu.barrier_wait(free.at[slot])

                @pl.when(n < steps)
                def _(part: Any = each[at * size : (at + 1) * size]) -> None:
                    for source, buffer, barrier in part:
                        plgpu.copy_gmem_to_smem(source, buffer.at[slot], barrier.at[slot])

        lax.fori_loop(0, steps + stages, step, None)

    def fill_keys(self, p: Problem, arrays: Arrays, ends: Any) -> None:
        """Copy the tiles of keys and values that the queries of a block visit."""
        row, head = lax.axis_index("row"), lax.axis_index("head")
        theirs, keys = lax.div(head, jnp.int32(p.group)), self.buffers[0].shape[1]

        def copies(n: Any) -> Any:
            place = row, pl.ds((ends[0] + n) * keys, keys), theirs
            return arrays.k.at[place], arrays.v.at[place]

        self.fill(ends[3] - ends[0], copies)


def product(p: Problem, a: Any, b: Any, turned: bool = False, then: Any = None) -> Any:
    """a b, or a bᵀ, in float32; `then` is called when the tensor cores have begun.

    `a` is a reference to shared memory, or an array in registers, `b` a reference.
    """
    shape = a.shape[0], b.shape[0] if turned else b.shape[1]
    if p.interpret:  # which knows no accumulators
        a = a if isinstance(a, jax.Array) else a[...]
        right = b[...].T if turned else b[...]
        found = jnp.dot(a, right, preferred_element_type=jnp.float32)
        plgpu.commit_smem()  # the threads have read what tensor cores would read
        if then is not None:
            then()
        return found

    def run(total: Any) -> Any:
        plgpu.wgmma(total, a, b.transpose((1, 0)) if turned else b)
        if then is not None:
            then()
        return total[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def add(p: Problem, total: Any, a: Any, b: Any) -> Any:
    """total + a b, where the sum stays in its registers."""
    if p.interpret:
        return total + product(p, a, b)
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.WGMMAAccumulatorRef.init(total))


def constant(p: Problem, value: float, shape: tuple[int, ...], layout: Any) -> Any:
    """An array of one value in registers."""
    return cast(p, jnp.full(shape, value, jnp.float32), layout)


def cast(p: Problem, x: Any, layout: Any) -> Any:
    return x if p.interpret else plgpu.layout_cast(x, layout)


# JAX 0.12 takes no index here, JAX 0.10 asks for one.
_INDEX = {"idx": ()} if "idx" in inspect.signature(plgpu.load).parameters else {}


def read(p: Problem, ref: Any, layout: Any, near: bool = True) -> Any:
    """Numbers of each row or column, from shared memory (`near`) or from the device's."""
    if p.interpret:
        return ref[...]
    return plgpu.load(ref, layout=layout, optimized=near, **_INDEX)


def lift(p: Problem, shape: tuple[int, int], turned: bool, layout: Any = WGMMA) -> Lift:
    """How numbers of queries and of keys are spread over a tile of scores."""
    spread = lambda axis: lambda x: cast(p, lax.broadcast_in_dim(x, shape, [axis]), layout)
    return Lift(spread(int(turned)), spread(int(not turned)))


def places_in(
    p: Problem,
    arrays: Arrays,
    shape: tuple[int, int],
    at: tuple[Any, Any],
    turned: bool,
    layout: Any = WGMMA,
) -> tuple[Any, Any]:
    """The positions of the queries and the keys of a tile that begins at two places."""
    if arrays.positions is not None:
        return _spread(p, arrays.positions, shape, (*at, layout), turned)
    count = lambda axis: cast(p, lax.broadcasted_iota(jnp.int32, shape, axis), layout)
    queries, keys = count(int(turned)), count(int(not turned))
    return queries + (at[0] + (p.keys - p.queries)), keys + at[1]


def _spread(p: Problem, pair: Any, shape: Any, where: Any, turned: bool) -> tuple[Any, Any]:
    *at, layout = where
    sizes = shape[::-1] if turned else shape
    layouts = [layout.reduce(axis) for axis in ((0, 1) if turned else (1, 0))]
    row = lax.axis_index("row")
    mine, theirs = (
        read(p, ref.at[row, pl.ds(start, n)], layout, near=False)
        for ref, start, n, layout in zip(pair, at, sizes, layouts, strict=True)
    )
    laid = lift(p, shape, turned, layout)
    return laid.queries(mine), laid.keys(theirs)


def seen_in(
    p: Problem,
    arrays: Arrays,
    shape: tuple[int, int],
    at: tuple[Any, Any],
    turned: bool,
    layout: Any = WGMMA,
) -> Any:
    """Which keys of a tile its queries see; none beyond the last of either."""
    seen = p.mask.sees(*places_in(p, arrays, shape, at, turned, layout))
    if arrays.segments is not None:
        mine, theirs = _spread(p, arrays.segments, shape, (*at, layout), turned)
        seen &= mine == theirs
    count = lambda axis: cast(p, lax.broadcasted_iota(jnp.int32, shape, axis), layout)
    if p.queries % 128:
        seen &= count(int(turned)) < p.queries - at[0]
    if p.keys % 128:
        seen &= count(int(not turned)) < p.keys - at[1]
    return seen


def scores_in(
    p: Problem,
    arrays: Arrays,
    products: Any,
    slope: Any,
    at: tuple[Any, Any],
    turned: bool,
    layout: Any = WGMMA,
) -> tuple[Any, Any]:
    """Scores from q kᵀ, times log₂ e, and their slope in the capped ones (None is 1)."""
    slopes = None
    if p.cap is None:
        found = products * (p.scale * LOG2E)
    else:
        # The processor's own tanh is too coarse: it errs by 2⁻¹¹.
        tanh = 1.0 - 2.0 / (1.0 + jnp.exp2(products * (2 * p.scale / p.cap * LOG2E)))
        found, slopes = tanh * (p.cap * LOG2E), 1.0 - tanh * tanh
    if slope is not None:
        queries, keys = places_in(p, arrays, products.shape, at, turned, layout)
        found -= jnp.abs(queries - keys).astype(jnp.float32) * (slope * LOG2E)
    return found, slopes


def log2(x: Any) -> Any:
    """The logarithm to base 2."""
    return jnp.log(x) * (1 / math.log(2))
