"""Arithmetic of stretches of time, against counting moments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jscale.profile.intervals import Work, gaps, length, shares, union, without

END = 12
spans = st.tuples(st.integers(0, END), st.integers(0, END)).map(
    lambda pair: (float(min(pair)), float(max(pair)))
)
several = st.lists(spans, max_size=6)


def moments(intervals: list[tuple[float, float]]) -> set[int]:
    """The whole seconds that intervals with whole ends cover."""
    return {s for start, end in intervals for s in range(int(start), int(end))}


@given(several)
def test_a_union_covers_the_same_moments_in_order_and_apart(a: list) -> None:
    whole = union(a)
    assert moments(whole) == moments(a)
    assert all(x[1] < y[0] for x, y in zip(whole, whole[1:], strict=False))
    assert length(a) == len(moments(a))


@given(several, several)
def test_what_is_left_without_others(a: list, b: list) -> None:
    left = without(a, b)
    assert moments(left) == moments(a) - moments(b)
    assert length(left) == len(moments(a) - moments(b))


@given(several)
def test_gaps_and_work_fill_the_time_from_first_to_last(a: list) -> None:
    covered = moments(a)
    hull = set(range(min(covered), max(covered) + 1)) if covered else set()
    assert moments(gaps(a)) == hull - covered


@given(st.lists(st.tuples(spans, st.sampled_from("abc"), st.integers(0, 2)), max_size=8))
def test_shares_add_up_to_the_time_covered(items: list) -> None:
    work = [Work(start, end, label, rank) for (start, end), label, rank in items]
    assert sum(shares(work).values()) == pytest.approx(length([span for span, _, _ in items]))


@given(several, several)
def test_a_lower_rank_takes_all_of_its_time(a: list, b: list) -> None:
    found = shares([Work(x, y, "first", 0) for x, y in a] + [Work(x, y, "second", 1) for x, y in b])
    assert found.get("first", 0.0) == pytest.approx(length(a))
    assert found.get("second", 0.0) == pytest.approx(length(without(b, a)))


def test_those_of_one_rank_share_evenly() -> None:
    both = [Work(0.0, 4.0, "a"), Work(2.0, 4.0, "b"), Work(2.0, 4.0, "b"), Work(3.0, 3.0, "c")]
    assert shares(both) == pytest.approx({"a": 2 + 2 / 3, "b": 4 / 3})
