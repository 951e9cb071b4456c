"""What is kept, what is due, and that nothing is deleted too early."""

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.store import Store
from jscale.errors import ConfigError

HOUR = 3600.0


@pytest.mark.parametrize(
    "policy, saved, kept",
    [
        (Checkpoints(keep=2), {1: 0.0, 2: 0.0, 3: 0.0}, {2, 3}),
        (Checkpoints(keep=5), {1: 0.0, 2: 0.0}, {1, 2}),
        (
            Checkpoints(keep=1, keep_every=10),
            dict.fromkeys(range(5, 30, 5), 0.0),
            {10, 20, 25},
        ),
        (
            Checkpoints(keep=1, keep_hours=1.0),
            {1: 0.0, 2: 0.5 * HOUR, 3: 1.5 * HOUR, 4: 1.9 * HOUR, 5: 9 * HOUR, 6: 9.1 * HOUR},
            {1, 3, 5, 6},
        ),
        (Checkpoints(), {}, set()),
    ],
)
def test_kept_steps(policy, saved, kept):
    assert policy.kept(saved) == kept


@given(
    keep=st.integers(1, 4),
    every=st.none() | st.integers(1, 5),
    hours=st.none() | st.floats(0.1, 5),
    times=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
)
def test_deleting_as_one_goes_keeps_what_deleting_at_the_end_keeps(keep, every, hours, times):
    policy = Checkpoints(keep=keep, keep_every=every, keep_hours=hours)
    saved = dict(enumerate(sorted(times), start=1))
    left = {}
    for step, time in saved.items():
        left[step] = time
        left = {s: left[s] for s in policy.kept(left)}
        assert step in left
    assert set(left) == policy.kept(saved)


@pytest.mark.parametrize(
    "field, build",
    [
        ("every", lambda: Checkpoints(every=0)),
        ("keep", lambda: Checkpoints(keep=0)),
        ("minutes", lambda: Checkpoints(minutes=0.0)),
        ("keep_every", lambda: Checkpoints(keep_every=0)),
        ("keep_hours", lambda: Checkpoints(keep_hours=float("nan"))),
    ],
)
def test_impossible_policies_are_refused(field, build):
    with pytest.raises(ConfigError, match=rf"checkpoints.{field} is \S+; it must be above 0"):
        build()


def test_due_by_steps_and_by_time(tmp_path):
    with Store(tmp_path / "steps", Checkpoints(every=4)) as store:
        assert [step for step in range(10) if store.due(step)] == [4, 8]
        store.save(4, {"x": jnp.ones(2)})
        assert not store.due(4) and store.due(8)
    with Store(tmp_path / "time", Checkpoints(every=1000, minutes=1e-9)) as store:
        assert store.due(1)
    with Store(tmp_path / "patient", Checkpoints(every=1000, minutes=60.0)) as store:
        assert not store.due(1)


def test_old_steps_go_when_the_new_one_is_there(tmp_path):
    with Store(tmp_path, Checkpoints(keep=2, keep_every=3)) as store:
        for step in range(1, 8):
            store.save(step, {"x": jnp.full(3, step)})
            store.wait()
            assert store.latest() == step
        assert store.steps() == [3, 6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "6", "7", "lock"]


def test_a_damaged_step_does_not_push_a_sound_one_out(tmp_path):
    with Store(tmp_path, Checkpoints(keep=2)) as store:
        for step in (1, 2):
            store.save(step, {"x": jnp.ones(3)})
        store.wait()
        (tmp_path / "2" / "commit_success.txt").unlink()
        store.save(3, {"x": jnp.ones(3)})
        store.wait()
        assert store.steps() == [1, 3] and (tmp_path / "2").exists()
