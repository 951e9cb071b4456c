"""Grouped matmul in plain XLA: groups filled up to small blocks of rows, multiplied in batches.

Every block has one matrix, so some of them are one batched product, in which at most a block a
group is empty. `jax.lax.ragged_dot` costs many times as much on CPU, and grows with E on GPUs.
"""

# R rows given, M rows taken, D their size, F that of the result, E groups, J blocks of b rows.

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.grouped_matmul.reference import group_of
from jscale.pallas_kernels.grouped_matmul.rows import given_back, taken

# Bytes of matrices that are copied out, one for each block, at a time: as a processor keeps near.
# An accelerator takes many more, so that steps are few.
WEIGHTS = 2**21
MORE = 2**5
product = partial(jnp.einsum, preferred_element_type=jnp.float32)


class Blocks(NamedTuple):
    """Where rows stand: `source` is the row in each place of each block, `slot` the place of each
    row over all blocks. Both are out of range where there is none."""

    source: Int[Array, "J b"]
    group: Int[Array, " J"]
    slot: Int[Array, " M"]


def block_rows(rows: int, groups: int) -> int:
    """How many rows a block has: enough to multiply well, not so many that most are filled up."""
    each = max(1, rows // max(1, groups))
    half, quarter = (2 ** max(3, (each // n).bit_length() - 1) for n in (2, 4))
    return min(128, half, max(64, quarter))


def lay_out(sizes: Int[Array, " E"], rows: int, b: int) -> Blocks:
    """Blocks for groups of these sizes that follow one another from the first of `rows` rows on."""
    E = sizes.shape[0]
    most = (rows + min(E, rows) * (b - 1)) // b  # blocks, however the rows are divided
    count = -(-sizes // b)
    ends, after = jnp.cumsum(count), jnp.cumsum(sizes)
    first_block, first_row = ends - count, after - sizes

    place = jnp.arange(most)
    owner = jnp.searchsorted(ends, place, side="right")
    group = jnp.minimum(owner, E - 1)
    within = (place - first_block[group])[:, None] * b + jnp.arange(b)
    real = (owner < E)[:, None] & (within < sizes[group][:, None])
    source = jnp.where(real, first_row[group][:, None] + within, rows)

    mine = group_of(sizes, rows)
    own = jnp.minimum(mine, E - 1)
    slot = first_block[own] * b + jnp.arange(rows) - first_row[own]
    return Blocks(source, group, jnp.where(mine < E, slot, most * b))


def by_blocks(
    x: Float[Array, "R D"],
    w: Float[Array, "E D F"],
    sizes: Int[Array, " E"],
    rows: Int[Array, " M"] | None = None,
) -> Float[Array, "M F"]:
    """The product of each row with the matrix of its group, summed in float32."""
    M, E = (x if rows is None else rows).shape[0], w.shape[0]
    if M == 0 or E == 0:
        return jnp.zeros((M, w.shape[2]), x.dtype)
    return _product(x, w, sizes, rows)


def _layout(x: Array, w: Array, sizes: Array, rows: Array | None) -> tuple[Blocks, Array]:
    """The blocks, and of each of their places the row of `x`."""
    M = (x if rows is None else rows).shape[0]
    blocks = lay_out(sizes, M, block_rows(M, w.shape[0]))
    if rows is None:
        return blocks, blocks.source
    return blocks, rows.at[blocks.source].get(mode="fill", fill_value=x.shape[0])


def in_parts(w: Array, blocks: Blocks, body: Callable[..., Any], start: Any, *index: Array) -> Any:
    """`body(carry, (group, *index))` over so many blocks at a time that their matrices are few."""
    J = blocks.group.shape[0]
    room = WEIGHTS * (1 if device().platform == "cpu" else MORE)
    each = max(1, min(J, room // (w[0].size * w.dtype.itemsize)))
    parts = -(-J // each)
    each = -(-J // parts)
    more = parts * each - J
    whole = jnp.iinfo(blocks.source.dtype).max  # out of range everywhere
    grow = lambda a, fill: jnp.pad(
        a, [(0, more)] + [(0, 0)] * (a.ndim - 1), constant_values=fill
    ).reshape(parts, each, *a.shape[1:])
    given = grow(blocks.group, 0), *(grow(a, whole) for a in index)
    if parts == 1:
        carry, out = body(start, tuple(a[0] for a in given))
        return carry, None if out is None else out[:J]
    carry, out = lax.scan(body, start, given)
    return carry, None if out is None else out.reshape(-1, *out.shape[2:])[:J]


@jax.custom_vjp
def _product(x: Array, w: Array, sizes: Array, rows: Array | None) -> Array:
    blocks, index = _layout(x, w, sizes, rows)

    def multiply(_: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        group, at = part
        matrices = w[group].astype(x.dtype)
        return None, product("jbd,jdf->jbf", taken(x, at), matrices).astype(x.dtype)

    out = in_parts(w, blocks, multiply, None, index)[1]
    return taken(out.reshape(-1, w.shape[2]), blocks.slot)


def _forward(x: Array, w: Array, sizes: Array, rows: Array | None) -> tuple[Array, Any]:
    return _product(x, w, sizes, rows), (x, w, sizes, rows)


def _backward(saved: Any, by: Float[Array, "M F"]) -> tuple[Array, Array, None, None]:
    x, w, sizes, rows = saved
    blocks, index = _layout(x, w, sizes, rows)

    def multiply(dw: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
        group, at, back = part
        g = taken(by, back)
        more = product("jbd,jbf->jdf", taken(x, at), g)
        dx = product("jbf,jdf->jbd", g, w[group].astype(x.dtype)).astype(x.dtype)
        return dw.at[group].add(more), dx

    start = jnp.zeros(w.shape, jnp.float32)
    dw, dx = in_parts(w, blocks, multiply, start, index, blocks.source)
    dx = taken(dx.reshape(-1, w.shape[1]), blocks.slot)
    return given_back(x, rows, dx), dw.astype(w.dtype), None, None


_product.defvjp(_forward, _backward)
