"""Plans: every pair once, rows full or padded, documents apart; any shape of corpus."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jscale.data.packing import Packing, Plan, Split, Whole, read_rows

PAIRS = st.lists(st.integers(0, 50), max_size=40).map(lambda pairs: np.array(pairs, np.int64))
LENGTHS = st.integers(1, 20)
PACKINGS = pytest.mark.parametrize("packing", [Split(), Whole()])


def rows_of(plan: Plan) -> np.ndarray:
    """The row of each piece."""
    return np.repeat(np.arange(len(plan.rows) - 1), np.diff(plan.rows))


@PACKINGS
@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS, length=LENGTHS)
@example(pairs=np.array([1000], np.int64), length=7)
@example(pairs=np.zeros(3, np.int64), length=4)
@example(pairs=np.array([0, 5, 0, 0, 5], np.int64), length=5)
def test_every_pair_stands_exactly_once_and_no_row_overflows(packing, pairs, length):
    plan = packing.plan(pairs, length)
    assert isinstance(packing, Packing)
    seen = [np.zeros(n, int) for n in pairs]
    for document, start, run in zip(plan.document, plan.start, plan.length, strict=True):
        assert run > 0
        seen[document][start : start + run] += 1
    assert all((counts == 1).all() for counts in seen)
    assert plan.length.sum() == pairs.sum()
    filled = np.bincount(rows_of(plan), plan.length, minlength=len(plan.rows) - 1)
    assert ((filled > 0) & (filled <= length)).all()


@given(pairs=PAIRS, length=LENGTHS)
def test_split_pads_only_the_last_row(pairs, length):
    assert len(Split().plan(pairs, length).rows) - 1 == -(-int(pairs.sum()) // length)


@given(pairs=PAIRS, length=LENGTHS)
def test_whole_cuts_only_what_does_not_fit(pairs, length):
    plan = Whole().plan(pairs, length)
    pieces = np.bincount(plan.document, minlength=len(pairs))
    assert np.array_equal(pieces, -(-pairs // length))


@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS, length=LENGTHS)
def test_whole_is_best_fit_decreasing(pairs, length):
    plan = Whole().plan(pairs, length)
    left: list[int] = []  # one at a time, as the textbook does
    for piece in sorted(plan.length.tolist(), reverse=True):
        fitting = [row for row in left if row >= piece]
        if fitting:
            left.remove(min(fitting))
        left.append((min(fitting) if fitting else length) - piece)
    filled = np.bincount(rows_of(plan), plan.length, minlength=len(plan.rows) - 1)
    assert sorted(left) == sorted((length - filled).astype(int).tolist())


@PACKINGS
@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS.filter(lambda pairs: pairs.sum() > 0), length=LENGTHS, data=st.data())
def test_rows_hold_what_the_plan_says(packing, pairs, length, data):
    ends = np.cumsum(pairs + 1)
    tokens = np.arange(100, 100 + ends[-1]).astype(np.uint16)
    begins = ends - pairs - 1
    plan = packing.plan(pairs, length)
    count = len(plan.rows) - 1
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6)))
    out = read_rows(tokens, begins, plan, rows, length, pad=7)
    for place, row in enumerate(rows):
        at = 0
        for segment, piece in enumerate(range(plan.rows[row], plan.rows[row + 1]), 1):
            n = plan.length[piece]
            first = begins[plan.document[piece]] + plan.start[piece]
            here = slice(at, at + n)
            assert np.array_equal(out["inputs"][place, here], tokens[first : first + n])
            assert np.array_equal(out["targets"][place, here], tokens[first + 1 : first + n + 1])
            assert (out["segments"][place, here] == segment).all()
            assert np.array_equal(out["positions"][place, here], np.arange(n))
            at += n
        assert np.array_equal(out["weights"][place], np.arange(length) < at)
        assert (out["inputs"][place, at:] == 7).all() and (out["targets"][place, at:] == 7).all()
        assert not out["segments"][place, at:].any() and not out["positions"][place, at:].any()
    kinds = {name: array.dtype.name for name, array in out.items()}
    assert kinds.pop("weights") == "float32" and set(kinds.values()) == {"int32"}
