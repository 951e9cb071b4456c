from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jscale.config.diff import ABSENT, Difference, diff


@dataclass(frozen=True)
class Adam:
    peak: float
    beta: float = 0.9


@dataclass(frozen=True)
class Lion:
    peak: float


@dataclass(frozen=True)
class Run:
    optimizer: Any
    mix: Any = None
    steps: Any = 1


def test_a_changed_leaf_is_one_difference() -> None:
    assert diff(Run(Adam(1.0)), Run(Adam(2.0))) == [Difference("optimizer.peak", 1.0, 2.0)]


def test_a_switched_type_shows_its_fields() -> None:
    assert diff(Run(Adam(1.0)), Run(Lion(2.0))) == [
        Difference("optimizer", Adam, Lion),
        Difference("optimizer.peak", 1.0, 2.0),
        Difference("optimizer.beta", 0.9, ABSENT),
    ]


def test_a_part_on_one_side_only_shows_all_its_fields() -> None:
    assert diff(Run(None), Run(Lion(2.0))) == [
        Difference("optimizer", None, Lion),
        Difference("optimizer.peak", ABSENT, 2.0),
    ]


def test_entries_of_mappings_and_items_of_tuples_are_compared() -> None:
    left = Run((Lion(1.0),), {"web": 0.5, "code": 0.5})
    right = Run((Lion(1.0), Lion(2.0)), {"web": 0.5, "books": 0.5})
    assert diff(left, right) == [
        Difference("optimizer.1", ABSENT, Lion),
        Difference("optimizer.1.peak", ABSENT, 2.0),
        Difference("mix.code", 0.5, ABSENT),
        Difference("mix.books", ABSENT, 0.5),
    ]


def test_one_is_one_point_nought_but_not_true() -> None:
    assert diff(Run(None, steps=1), Run(None, steps=1.0)) == []
    assert diff(Run(None, steps=1), Run(None, steps=True)) == [Difference("steps", 1, True)]
    assert diff(Run(None, steps=float("nan")), Run(None, steps=float("nan"))) == []


leaves = st.none() | st.integers() | st.text() | st.just(())
parts = st.builds(Adam, leaves, leaves) | st.builds(Lion, leaves)
runs = st.builds(
    Run,
    parts | leaves,
    st.dictionaries(st.text(min_size=1), parts | leaves) | st.lists(parts).map(tuple),
    leaves,
)


@given(runs, runs)
def test_there_are_differences_exactly_between_different_values(a: Run, b: Run) -> None:
    assert (diff(a, b) == []) == (a == b)
    mirrored = {x.path: (x.right, x.left) for x in diff(a, b)}
    assert mirrored == {x.path: (x.left, x.right) for x in diff(b, a)}
