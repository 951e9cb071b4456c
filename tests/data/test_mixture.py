"""Mixtures: shares hold at every moment, each source's samples come once and in order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.data.files import Texts
from jscale.data.mixture import Mixture, Schedule
from jscale.errors import ConfigError


def mixture(*weights: float) -> Mixture:
    return Mixture(tuple((Texts((str(i),)), float(weight)) for i, weight in enumerate(weights)))


@settings(max_examples=60, deadline=None)
@given(shares=st.lists(st.integers(1, 40), min_size=1, max_size=7))
def test_counts_are_within_one_of_the_share_at_every_moment(shares):
    schedule, n = Schedule(tuple(shares)), 3 * sum(shares)
    part, number = schedule.locate(np.arange(n))
    counts = np.cumsum(part[:, None] == np.arange(len(shares)), axis=0)
    ideal = np.arange(1, n + 1)[:, None] * np.array(shares) / sum(shares)
    assert np.abs(counts - ideal).max() <= 1
    for i in range(len(shares)):
        assert np.array_equal(number[part == i], np.arange((part == i).sum()))


@settings(max_examples=30, deadline=None)
@given(shares=st.lists(st.integers(1, 9), min_size=1, max_size=4), n=st.integers(0, 1 << 50))
def test_a_sample_alone_is_where_it_is_among_others(shares, n):
    schedule = Schedule(tuple(shares))
    part, number = schedule.locate(np.arange(n, n + 20))
    for i in range(20):
        alone = schedule.locate(np.arange(n + i, n + i + 1))
        assert (alone[0][0], alone[1][0]) == (part[i], number[i])


SHARES = [
    ((0.7, 0.3), (7, 3)),
    ((70, 30), (7, 3)),
    ((1, 1, 1), (1, 1, 1)),
    ((0.1, 0.2, 0.3), (1, 2, 3)),
    ((5,), (1,)),
    ((1e-5, 1), (1, 100_000)),
    ((1 / 3, 2 / 3), (1, 2)),
    ((1 / 3, 1 - 1 / 3), (333_333, 666_667)),
]


@pytest.mark.parametrize(("weights", "shares"), SHARES)
def test_weights_are_the_decimals_that_are_written(weights, shares):
    assert mixture(*weights).shares() == shares


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_must_be_positive(weight):
    with pytest.raises(ConfigError, match="of Texts must be positive"):
        mixture(1, weight)


def test_hopeless_weights_and_parts_are_refused():
    with pytest.raises(ConfigError, match="the weight 1e-09 is below a millionth of the whole"):
        mixture(1.23456789, 1e-9)
    with pytest.raises(ConfigError, match="at least one part"):
        Mixture(())
