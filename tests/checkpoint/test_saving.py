"""Saving in the background: training goes on at once, and a full disk harms nothing."""

import contextlib
import resource
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.states import assert_same, make_mesh, make_state, shapes_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.store import Store
from jscale.checkpoint.verify import damage
from jscale.errors import CheckpointError


def test_training_goes_on_with_donated_arrays_right_after_save(tmp_path):
    sharding = NamedSharding(make_mesh(4, 2), P("a", "b"))
    values = np.arange(512 * 512, dtype=np.float32).reshape(512, 512)
    state = {"w": jax.device_put(values, sharding), "m": jax.device_put(values, sharding)}
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    with Store(tmp_path, Checkpoints(keep=9)) as store:
        for step in range(1, 6):
            old = jax.tree.leaves(state)
            store.save(step, state)
            state = advance(advance(state))
            for array in old:
                array.delete()  # were it not donated
            jax.block_until_ready(state)
        store.wait()
        expected = values
        for step in range(1, 6):
            assert not damage(tmp_path, step)
            restored = store.restore(shapes_of(state), step=step).state
            np.testing.assert_array_equal(restored["w"], expected)
            expected = (expected * 2 + 1) * 2 + 1


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    @jax.jit
    def advance(state):
        noise = jax.random.normal(jax.random.wrap_key_data(state["rng"]), (64, 128))
        up = state["params"]["up"] * 0.9 + noise
        rng = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(state["rng"]), 1)[0])
        return state | {"params": state["params"] | {"up": up}, "rng": rng}

    straight = make_state(seed=1)
    placed = jax.tree.map(lambda x: x.sharding, straight)
    with Store(tmp_path, Checkpoints()) as store:
        for step in range(1, 7):
            straight = jax.device_put(advance(straight), placed)
            if step == 3:
                store.save(step, straight)
    with Store(tmp_path, Checkpoints()) as store:
        resumed = store.restore(shapes_of(make_state())).state
        for _ in range(3):
            resumed = jax.device_put(advance(resumed), placed)
    assert_same(resumed, straight)


def test_poll_tells_when_a_save_is_done(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        assert store.poll()
        store.save(1, {"w": jnp.ones((512, 512))})
        while not store.poll():
            pass
        assert store.latest() == 1


def test_the_same_step_is_not_saved_twice(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        store.save(1, make_state(seed=1))
        with pytest.raises(CheckpointError, match="has a step 1 already; continue from it"):
            store.save(1, make_state(seed=2))
        assert_same(store.restore(shapes_of(make_state())).state, make_state(seed=1))


def test_a_note_that_is_not_plain_is_refused_at_once(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        for note in ({"loss": float("nan")}, {"where": {1, 2}}):
            with pytest.raises((TypeError, ValueError)):
                store.save(1, make_state(), note)
        assert store.steps() == [] and store.poll()


@contextlib.contextmanager
def tmpfs(folder, options):
    """A small real disk; skips the test where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def no_file_above(limit):
    """The kernel refuses to let files of this process grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_failed_save(store, folder):
    """After step 1 was saved and step 2 failed: told once, nothing half written, step 1 whole."""
    with pytest.raises(CheckpointError) as caught:
        store.wait()
    message = str(caught.value)
    assert "step 2 could not be saved" in message and "the disk is full" in message
    assert "free" in message and "needed" in message and "\n" not in message
    store.wait()  # told once
    assert store.steps() == [1] and not damage(folder, 1)
    assert [p.name for p in folder.iterdir() if "tmp" in p.name] == []


def test_a_disk_without_room_for_a_file_harms_nothing_and_training_goes_on(tmp_path):
    with Store(tmp_path, Checkpoints()) as store:
        store.save(1, make_state(seed=1))
        store.wait()
        with no_file_above(20_000):
            store.save(2, make_state(seed=2))
            check_failed_save(store, tmp_path)
        store.save(2, make_state(seed=2))  # there is room again
        assert_same(store.restore(shapes_of(make_state())).state, make_state(seed=2))


def test_a_full_disk_harms_nothing_and_training_goes_on(tmp_path):
    with tmpfs(tmp_path / "disk", "size=64m,nr_inodes=40") as folder:
        with Store(folder, Checkpoints()) as store:
            store.save(1, make_state(seed=1))
            store.wait()
            ballast = [folder / f"ballast{i}" for i in range(40)]
            with contextlib.suppress(OSError):
                for path in ballast:
                    path.touch()
            ballast[0].unlink()
            ballast[1].unlink()
            with contextlib.suppress(CheckpointError):  # at once or in the background
                store.save(2, make_state(seed=2))
                store.wait()
            assert store.steps() == [1] and not damage(folder, 1)
            assert [p.name for p in folder.iterdir() if "tmp" in p.name] == []
            for path in ballast:
                path.unlink(missing_ok=True)
            store.save(2, make_state(seed=2))
            assert_same(store.restore(shapes_of(make_state())).state, make_state(seed=2))


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    with tmpfs(tmp_path / "disk", "size=1m") as folder:
        with Store(folder, Checkpoints()) as store:
            with pytest.raises(CheckpointError, match=r"1020.0 KiB free and it needs 4\.\d MiB"):
                store.save(1, {"w": jnp.ones((1024, 1024))})
            assert [p.name for p in folder.iterdir()] == ["lock"]


def test_an_error_that_nobody_waited_for_is_told_at_the_end(tmp_path):
    with no_file_above(20_000):
        with pytest.raises(CheckpointError, match="step 1 could not be saved"):
            with Store(tmp_path, Checkpoints()) as store:
                store.save(1, make_state())
        with pytest.raises(KeyError) as caught:
            with Store(tmp_path, Checkpoints()) as store:
                store.save(1, make_state())
                raise KeyError("what ended the run")
        assert "step 1 could not be saved" in caught.value.__notes__[0]
    with Store(tmp_path, Checkpoints()) as store:  # the folder was given back
        assert store.steps() == []
