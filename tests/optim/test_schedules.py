"""Schedules: the host and the compiled step agree, and both agree with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.optim import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    Schedule,
    WarmupStableDecay,
)

STEPS, PEAK = 50, 3e-3

ALL = [
    Constant(),
    Constant(warmup=5),
    Cosine(),
    Cosine(warmup=7, final=0.2),
    Linear(),
    Linear(warmup=49, final=0.5),
    WarmupStableDecay(warmup=5, decay=10),
    WarmupStableDecay(warmup=0, decay=50, final=0.1),
    InverseSquareRoot(warmup=4),
]


def rates(schedule: Schedule, steps: int = STEPS) -> np.ndarray:
    return np.array([schedule.rate(PEAK, step, steps) for step in range(steps)])


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_host_and_compiled_step_agree(schedule):
    assert isinstance(schedule, Schedule)
    built = jax.jit(jax.vmap(schedule.build(PEAK, STEPS)))(jnp.arange(STEPS))
    assert built.dtype == jnp.float32
    np.testing.assert_allclose(built, rates(schedule), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_rates_stay_within_the_peak_and_are_never_zero(schedule):
    found = rates(schedule)
    assert (found > 0).all() and (found <= PEAK * (1 + 1e-12)).all()


def test_host_rate_touches_no_device():
    with jax.transfer_guard("disallow"):
        assert [type(s.rate(PEAK, 3, STEPS)) for s in ALL] == [float] * len(ALL)


@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        (Constant(warmup=6), optax.constant_schedule(PEAK)),
        (Cosine(warmup=6, final=0.1), optax.cosine_decay_schedule(PEAK, STEPS - 6, 0.1)),
        (Linear(warmup=6, final=0.3), optax.linear_schedule(PEAK, 0.3 * PEAK, STEPS - 6)),
        (WarmupStableDecay(6, 10), optax.linear_schedule(PEAK, 0.0, 10, STEPS - 16)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_equals_optax(schedule, after_warmup):
    warmup = optax.linear_schedule(PEAK / 6, PEAK, 5)
    plain = optax.join_schedules([warmup, after_warmup], [6])
    wanted = jax.vmap(plain)(jnp.arange(STEPS))
    np.testing.assert_allclose(rates(schedule), wanted, rtol=1e-5, atol=1e-9)


def test_a_span_below_one_is_a_share_of_the_run():
    pairs = [
        (Cosine(0.1), Cosine(STEPS // 10)),
        (Linear(0.5), Linear(STEPS // 2)),
        (WarmupStableDecay(0.1, 0.2), WarmupStableDecay(STEPS // 10, STEPS // 5)),
        (InverseSquareRoot(0.1), InverseSquareRoot(STEPS // 10)),
    ]
    for share, whole in pairs:
        np.testing.assert_allclose(rates(share), rates(whole))
    Cosine(0.05).build(PEAK, 2)  # fits a run of any length


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1000), st.data())
def test_warmup_rises_to_the_peak_and_decay_only_falls(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    for schedule in (Cosine(warmup), Linear(warmup), Constant(warmup)):
        found = rates(schedule, steps)
        assert (np.diff(found[:warmup]) > 0).all()
        assert found[warmup] == pytest.approx(PEAK)
        assert (np.diff(found[warmup:]) <= 1e-15).all()


def test_ends_at_the_final_fraction():
    for schedule in (Cosine(3, 0.1), Linear(3, 0.1), WarmupStableDecay(3, 9, 0.1)):
        assert schedule.rate(1.0, STEPS, STEPS) == pytest.approx(0.1)
        assert schedule.rate(1.0, 10 * STEPS, STEPS) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cosine(warmup=-1), "Cosine.warmup is -1"),
        (lambda: Cosine(warmup=1.5), "a share of the run below 1"),
        (lambda: Cosine(warmup=True), "Cosine.warmup is True; it must be a whole number"),
        (lambda: Cosine(final=1.5), "Cosine.final is 1.5"),
        (lambda: Linear(final=float("nan")), "Linear.final is nan"),
        (lambda: WarmupStableDecay(1, 0), "WarmupStableDecay.decay is 0"),
        (lambda: InverseSquareRoot(0), "InverseSquareRoot.warmup is 0"),
        (lambda: Cosine(warmup=50).build(PEAK, 50), "warmup must be below steps"),
        (lambda: Constant(warmup=51).build(PEAK, 50), "the run has 50 steps"),
        (lambda: WarmupStableDecay(30, 21).build(PEAK, 50), "30 \\+ 21 steps"),
        (lambda: Cosine().build(PEAK, 0), "steps must be 1 or more"),
    ],
)
def test_mistakes_are_said_in_a_sentence(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
