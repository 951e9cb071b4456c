"""What `jscale bench kernels dispatch` compares: all ways, on one device and over several."""

import pytest

from jscale.launch.bench.case import COPY, measure
from jscale.launch.bench.ceiling import Ceiling
from jscale.launch.bench.measure import clock_of
from jscale.launch.bench.rows.dispatch import SUBJECT
from jscale.pallas_kernels.device import Device

ONE = {"local", "take, segment_sum", "one-hot products"}
SEVERAL = {"gather", "all-to-all", "ragged"}
QUICK = SUBJECT.cases("cpu", True)


@pytest.mark.parametrize(
    "case, wanted", [(QUICK[0], ONE), pytest.param(QUICK[1], SEVERAL, marks=pytest.mark.slow)]
)
def test_all_are_right_and_stand_beside_a_copy_of_what_must_move(case, wanted):
    around = Ceiling(1e12, 1e9), clock_of("cpu", quick=True), Device("cpu", "cpu")
    found = measure(SUBJECT, case, ["training"], *around)
    assert not [why for why in found["silent"].values() if "wrong" in why]
    for one in found["passes"].values():
        assert {*wanted, COPY} <= set(one["contenders"])


def test_what_must_move():
    """Two tables of tokens and four of rows forward; five of rows backward."""
    case = SUBJECT.case(tokens=10, choices=3, experts=4, dim=8, dtype="float32")
    tokens = 10 * 8 * 4
    assert SUBJECT.work(case)["forward"].bytes == tokens * (2 + 4 * 3)
    assert SUBJECT.work(case)["training"].bytes == tokens * (4 + 9 * 3)
    assert case.traffic.sum() == 30 and "0.00992 MB must move" in str(case)
