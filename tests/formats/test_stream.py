"""Weights streamed into shards: the same as read at once, and never many in host memory."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jscale.errors import CheckpointError
from jscale.formats.files import Files, write_files
from jscale.formats.stream import AHEAD, FLOATS, stream
from jscale.formats.table import Pair, Table
from jscale.mesh import Axes, Layout, make_mesh

LAYERS = 24
OVER = {"layer": range(LAYERS)}
TABLE = Table(
    (
        Pair("blocks/q", "layers.{layer}.q", "(n h) d -> d n h", {"h": 3}, OVER),
        Pair("blocks/scale", "layers.{layer}.scale", over=OVER),
        Pair(
            "blocks/experts", "layers.{layer}.{e}", "f d -> d f",
            over={**OVER, "e": range(2)},
        ),
        Pair("embed", "embed"),
    ),
    again=(Pair("embed", "head"),),
)  # fmt: skip
SHAPES = {
    "blocks": {
        "q": jax.ShapeDtypeStruct((LAYERS, 8, 4, 3), jnp.float32),
        "scale": jax.ShapeDtypeStruct((LAYERS, 8), jnp.float32),
        "experts": jax.ShapeDtypeStruct((LAYERS, 2, 8, 6), jnp.bfloat16),
    },
    "embed": jax.ShapeDtypeStruct((16, 8), jnp.float32),
}
AXES = {
    "blocks": {
        "q": Axes("layers", "embed", "heads", "head"),
        "scale": Axes("layers", "scale"),
        "experts": Axes("layers", "experts", "embed", "mlp"),
    },
    "embed": Axes("vocab", "embed"),
}


def release(**more):
    draw = np.random.default_rng(0).standard_normal
    arrays = {"embed": draw((16, 8)).astype("f4"), **more}
    for layer in range(LAYERS):
        arrays[f"layers.{layer}.q"] = draw((12, 8)).astype("f4")
        arrays[f"layers.{layer}.scale"] = draw(8).astype("f4")
        arrays |= {f"layers.{layer}.{e}": draw((6, 8)).astype("bfloat16") for e in range(2)}
    return arrays


def where(**sizes):
    return Layout(make_mesh(**sizes)).weight_shardings(SHAPES, AXES)


@pytest.mark.parametrize(
    "mesh", [{}, {"fsdp": 4, "tensor": 2}, {"stage": 2, "expert": 2, "fsdp": 2}]
)
def test_what_is_streamed_is_what_is_read_at_once(tmp_path, mesh):
    arrays, told = release(), []
    write_files(arrays, tmp_path, shard=4000)
    shardings = where(**mesh)
    with Files(tmp_path) as files:
        found = stream(TABLE, files, SHAPES, shardings, lambda *now: told.append(now))
    wanted = TABLE.read(arrays, SHAPES)
    for a, b, sharding in zip(*map(jax.tree.leaves, (found, wanted, shardings)), strict=True):
        assert a.dtype == b.dtype and a.sharding == sharding
        np.testing.assert_array_equal(a, b)
    assert told == sorted(told) and told[-1][0] == told[-1][1]


class Watched(dict):
    """A release that knows how many of its arrays are held by somebody."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.held, self.most = 0, 0

    def shape(self, name):
        return self[name].shape

    def dtype(self, name):
        return {"float32": "F32", "bfloat16": "BF16"}.get(str(self[name].dtype), "I8")

    def part(self, name, box):
        array = np.array(self[name][box])
        self.held += 1
        self.most = max(self.most, self.held)
        weakref.finalize(array, self.gone)
        return array

    def gone(self):
        self.held -= 1


def test_the_host_holds_a_few_arrays_at_once():
    gc.collect()
    watched = Watched(release())
    stream(TABLE, watched, SHAPES, where())
    assert 1 <= watched.most <= AHEAD + 3 < LAYERS


@pytest.mark.parametrize("same", [True, False])
def test_what_is_held_twice_must_be_the_same(same):
    arrays = release()
    head = arrays["embed"] if same else arrays["embed"] + 1
    both = Watched({**arrays, "head": head})
    if same:
        stream(TABLE, both, SHAPES, where())
    else:
        with pytest.raises(CheckpointError, match="head is to be the same .* does not share"):
            stream(TABLE, both, SHAPES, where())


def test_nothing_is_read_where_one_does_not_fit():
    arrays = release()
    arrays[f"layers.{LAYERS - 1}.q"] = np.zeros((12, 7), "f4")
    watched = Watched(arrays)
    with pytest.raises(CheckpointError, match=rf"layers.{LAYERS - 1}.q \(12, 7\) makes blocks/q"):
        stream(TABLE, watched, SHAPES, where())
    assert watched.most == 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "complex64"])
def test_what_holds_no_weights_is_not_taken_for_them(tmp_path, dtype):
    arrays = release()
    arrays["layers.3.q"] = np.ones((12, 8), dtype)
    watched = Watched(arrays)
    with pytest.raises(CheckpointError, match="layers.3.q holds I8: .* was the release quantised"):
        stream(TABLE, watched, SHAPES, where())
    assert watched.most == 0
    if dtype != "complex64":  # which that format does not have
        write_files({"q": np.ones((12, 8), dtype)}, tmp_path)
        with Files(tmp_path) as files:
            assert files.dtype("q") not in FLOATS
