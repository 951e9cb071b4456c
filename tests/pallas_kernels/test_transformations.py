"""Attention's kernels, interpreted, inside JAX's transformations; jit and grad are in all."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from attention_grid import Case, agree, watched

from jscale.errors import ConfigError
from jscale.mesh import Axes, Layout, make_mesh, per_shard
from jscale.pallas_kernels.attention import attention
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.tpu_tiles import Tiles
from jscale.pallas_kernels.attention.triton import triton
from jscale.pallas_kernels.attention.triton_tiles import Tiles as TritonTiles
from jscale.pallas_kernels.attention.tuned import Sizes

SIXTEEN = TritonTiles(16, 16)
KERNELS = {
    "tpu": partial(flash, size=Tiles(8, 8)),
    "triton": partial(triton, size=Sizes(SIXTEEN, SIXTEEN, SIXTEEN)),
}
CASE = Case(queries=10, heads=(2, 1), head=4, value=4)  # of two rows


def vmap(one):
    """Each row by itself."""
    alone = lambda *x: jax.tree.map(lambda a: a[0], one(*(a[None] for a in x)))
    return jax.vmap(alone)


def scan(one):
    """The rows one after another."""

    def step(carry, x):
        return carry, jax.tree.map(lambda a: a[0], one(*(a[None] for a in x)))

    return lambda *x: jax.lax.scan(step, 0, x)[1]


def shard_map(one):
    """The rows on a device each."""
    rows = Axes("batch", None, None, None)

    def split(*x):
        with Layout(make_mesh(data=2)).active():
            outputs = rows, Axes("batch", None, None)
            return per_shard(one, *x, inputs=(rows, rows, rows), outputs=outputs)

    return split


# What else the Triton kernel is put through stands with it.
GRID = [("tpu", vmap), ("tpu", scan), ("tpu", jax.checkpoint)]
GRID += [("tpu", shard_map), ("triton", shard_map)]


@pytest.mark.parametrize("name, around", GRID, ids=lambda x: getattr(x, "__name__", x))
def test_a_kernel_inside_a_transformation_gives_what_it_gives_outside(name, around):
    run = KERNELS[name]
    inside = lambda q, k, v, *rest: around(lambda *x: run(*x, *rest))(q, k, v)
    with watched(memory=around is not jax.checkpoint):
        agree(CASE, inside)


def test_a_kernel_is_not_split_by_the_partitioner():
    """Outside `per_shard` an array that is split would be gathered, so that another is chosen."""
    x = jnp.ones((8, 4, 1, 4))
    with Layout(make_mesh(data=8)).active(), watched():
        with pytest.raises(ConfigError, match="inside shard_map only"):
            attention(x, x, x, implementation="tpu")
