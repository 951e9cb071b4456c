"""Weights that a release keeps in one array, after each other or in turns, read and written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jscale.errors import CheckpointError
from jscale.formats.cut import Cut
from jscale.formats.files import Files, write_files
from jscale.formats.stream import stream
from jscale.formats.table import Pair, Table
from jscale.mesh import MeshShape, make_mesh

OVER = {"layer": range(2)}
PARTS = (
    Pair("q", "{layer}.qkv", "(n h) d -> d n h", {"h": 2}, OVER, Cut(0, 0, 8, 12)),
    Pair("k", "{layer}.qkv", "(n h) d -> d n h", {"h": 2}, OVER, Cut(0, 8, 4, 12)),
    Pair("gate", "{layer}.experts", "e d f -> e d f", {}, OVER, Cut(2, 0, 4, 8, 2)),
    Pair("up", "{layer}.experts", None, {}, OVER, Cut(2, 1, 4, 8, 2)),
)
TABLE = Table(PARTS)
SHAPES = {"q": (2, 6, 4, 2), "k": (2, 6, 2, 2), "gate": (2, 3, 6, 4), "up": (2, 3, 6, 4)}
WANTED = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def theirs():
    draw = np.random.default_rng(0).standard_normal
    shapes = {"qkv": (12, 6), "experts": (3, 6, 8)}
    return {f"{i}.{name}": draw(s).astype("f4") for i in range(2) for name, s in shapes.items()}


def test_parts_are_read_and_written(theirs):
    ours = TABLE.read(theirs, WANTED)
    np.testing.assert_array_equal(ours["q"][1, 3], theirs["1.qkv"][:8, 3].reshape(4, 2))
    np.testing.assert_array_equal(ours["k"][0, 3], theirs["0.qkv"][8:, 3].reshape(2, 2))
    np.testing.assert_array_equal(ours["gate"][1], theirs["1.experts"][..., ::2])
    np.testing.assert_array_equal(ours["up"][0], theirs["0.experts"][..., 1::2])
    back = TABLE.lazily(ours)
    assert {name: lazy.nbytes for name, lazy in back.items()} == {
        name: array.nbytes for name, array in theirs.items()
    }
    for name, lazy in back.items():
        np.testing.assert_array_equal(lazy.fetch(), theirs[name])


def test_devices_read_their_parts_of_parts(theirs, tmp_path):
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2), jax.devices()[:4])
    where = {
        "q": PartitionSpec(None, "fsdp", "tensor"),
        "k": PartitionSpec(None, None, "tensor"),
        "gate": PartitionSpec(None, None, "fsdp", "tensor"),
        "up": PartitionSpec(None, None, None, ("fsdp", "tensor")),
    }
    write_files(theirs, tmp_path)
    with Files(tmp_path) as files:
        shardings = {name: NamedSharding(mesh, spec) for name, spec in where.items()}
        found = stream(TABLE, files, WANTED, shardings)
    wanted = TABLE.read(theirs, WANTED)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].sharding.spec == where[name]


def test_what_does_not_fit_is_named(theirs):
    with pytest.raises(CheckpointError, match=r"0.qkv \(11, 6\) holds several .* must be 12 long"):
        TABLE.read(theirs | {"0.qkv": theirs["0.qkv"][:11]}, WANTED)
    ours = TABLE.read(theirs, WANTED)
    del ours["up"]
    with pytest.raises(CheckpointError, match="no weight of ours fills 0.experts at 1 of its axis"):
        Table(PARTS[:3]).write(ours)
