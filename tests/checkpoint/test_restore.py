"""Round trips: onto other meshes, with real optimizers, and strict about all that differs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint.states import assert_same, make_mesh, make_state, shapes_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.names import named_leaves
from jscale.checkpoint.restore import restore
from jscale.checkpoint.store import Store
from jscale.errors import CheckpointError

NOTE = {"data": {"position": 12}, "recipe": "abc"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with step 3 of a state that was laid out over 4 x 2 devices."""
    folder = tmp_path_factory.mktemp("saved")
    with Store(folder, Checkpoints()) as store:
        store.save(3, make_state(seed=3), NOTE)
    return folder


@pytest.mark.parametrize("rows, columns", [(4, 2), (8, 1), (2, 4), (1, 8), (2, 2), (1, 1)])
def test_every_mesh_gets_the_same_bits_in_its_own_layout(saved, rows, columns):
    expected = make_state(rows, columns, seed=3)
    restored = restore(saved, shapes_of(expected))
    assert (restored.step, restored.note, restored.set_aside) == (3, NOTE, ())
    assert_same(restored.state, expected)


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=4),
    "muon": optax.contrib.muon(1e-3),
    "masked chain": optax.chain(
        optax.masked(optax.trace(0.9), {"up": True, "norm": False}), optax.clip_by_global_norm(1.0)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_state_comes_back_on_another_mesh(tmp_path, name):
    params = {"up": jnp.arange(32.0).reshape(8, 4), "norm": jnp.ones(4)}

    def placed(mesh):
        put = lambda x: jax.device_put(x, NamedSharding(mesh, P("a") if x.ndim == 2 else P()))
        return jax.tree.map(put, (params, OPTIMIZERS[name].init(params)))

    with Store(tmp_path, Checkpoints()) as store:
        store.save(1, placed(make_mesh(4, 2)))
        expected = placed(make_mesh(2, 1))
        assert_same(store.restore(shapes_of(expected)).state, expected)


def test_numbers_and_host_arrays_are_saved_as_jax_would_hold_them(tmp_path):
    tree = {"count": 3, "rate": 0.5, "table": np.arange(6, dtype=np.int16)}
    expected = jax.tree.map(jnp.asarray, tree)
    with Store(tmp_path, Checkpoints()) as store:
        store.save(1, tree)
        tree["table"][:] = 0  # the caller's memory is the caller's
        assert_same(store.restore(shapes_of(expected)).state, expected)


def test_the_newest_or_the_given_step(tmp_path):
    with Store(tmp_path, Checkpoints(keep=3)) as store:
        assert store.latest() is None
        for step in (2, 10, 5):
            store.save(step, make_state(seed=step))
        store.wait()
        assert store.steps() == [2, 5, 10] and store.latest() == 10
        shapes = shapes_of(make_state())
        assert store.restore(shapes).step == 10
        assert_same(store.restore(shapes, step=5).state, make_state(seed=5))
        with pytest.raises(CheckpointError, match="has no step 7; the steps there are: 2, 5, 10"):
            store.restore(shapes, step=7)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        restore(tmp_path / "nowhere", shapes_of(make_state()))
    assert not (tmp_path / "nowhere").exists()


def without(tree, name):
    return {**tree, "params": {k: v for k, v in tree["params"].items() if k != name}}


def with_param(tree, name, array):
    sharding = tree["flags"].sharding
    array = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return {**tree, "params": {**tree["params"], name: array}}


@pytest.mark.parametrize(
    "change, row",
    [
        (lambda s: without(s, "up"), r"params/up +float32\[64 128\] +not wanted"),
        (
            lambda s: with_param(without(s, "up"), "uq", jnp.zeros((64, 128))),
            r"params/uq +absent +float32\[64 128\] +is it 'params/up'\?",
        ),
        (
            lambda s: with_param(s, "up", jnp.zeros((8, 32))),
            r"params/up +float32\[64 128\] +float32\[8 32\]",
        ),
        (
            lambda s: with_param(s, "up", jnp.zeros((64, 128), jnp.bfloat16)),
            r"params/up +float32\[64 128\] +bfloat16\[64 128\]",
        ),
        (
            lambda s: with_param(s, "empty", jnp.zeros((0, 4))),
            r"params/empty +float32\[0 8\] +float32\[0 4\]",
        ),
    ],
    ids=["extra", "missing", "shape", "dtype", "empty"],
)
def test_what_differs_is_shown_and_nothing_is_cast_or_moved(saved, change, row):
    before = sorted(saved.rglob("*"))
    with pytest.raises(CheckpointError, match="of another model or optimizer") as caught:
        restore(saved, change(shapes_of(make_state())))
    assert re.search(row, str(caught.value))
    assert "name" in str(caught.value) and "in the checkpoint" in str(caught.value)
    assert sorted(saved.rglob("*")) == before


def test_a_long_difference_ends_in_a_count(saved):
    sharding = NamedSharding(make_mesh(1, 1), P())
    like = {f"w{i}": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding) for i in range(50)}
    stored = len(named_leaves(make_state()))
    with pytest.raises(CheckpointError) as caught:
        restore(saved, like)
    lines = str(caught.value).splitlines()
    assert len(lines) == 23 and lines[-1].strip() == f"and {50 + stored - 20} more"
    assert f"{50 + stored} arrays differ" in lines[0]


def test_names_that_would_be_mixed_up_are_refused(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        with pytest.raises(CheckpointError, match="two arrays of the state have the same name"):
            store.save(1, {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
        with pytest.raises(CheckpointError, match="'a' and 'a/b' cannot both be stored"):
            store.save(1, {"a/b": jnp.ones(2), "a": jnp.ones(2)})
        assert store.steps() == []


def test_a_dtype_that_orbax_cannot_store_is_refused_before_anything_is_written(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        with pytest.raises(CheckpointError, match="arrays of uint4 cannot be saved"):
            store.save(1, {"a": jnp.ones(2, jnp.uint4)})
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
