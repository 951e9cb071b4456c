"""Progress in a notebook: one text, drawn anew."""

import pytest

from jscale.metrics.cell import Cell


class Desk:
    """A clock and all the texts that were shown."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shown: list[str] = []

    def cell(self, total: int = 100) -> Cell:
        return Cell(total, clock=lambda: self.now, show=self.shown.append)


def test_a_thousand_steps_are_few_drawings_of_one_line() -> None:
    desk = Desk()
    cell = desk.cell(1000)
    cell.start()
    for step in range(1, 1001):
        desk.now += 0.01
        cell.step(step, {"loss": 1.0})
    cell.stop()
    assert len(desk.shown) <= 10 / 0.5 + 3
    assert all("\n" not in text for text in desk.shown)
    assert desk.shown[-1].startswith("step 1000/1000") and "loss 1" in desk.shown[-1]


def test_notes_stay_above_and_phases_leave_one() -> None:
    desk = Desk()
    cell = desk.cell()
    cell.note("2 devices")
    with cell.phase("compiling"):
        assert desk.shown[-1] == "2 devices\ncompiling ..."
        desk.now += 3.0
    assert desk.shown[-1] == "2 devices\ncompiling ... done in 3.0 s"
    with pytest.raises(KeyboardInterrupt), cell.phase("saving"):
        raise KeyboardInterrupt
    assert desk.shown[-1].endswith("saving ... failed after 0 ms")


def test_work_is_shown_until_it_is_done() -> None:
    desk = Desk()
    cell = desk.cell()
    cell.work(500, 2000, "tokenizing")
    assert desk.shown == ["tokenizing 500 B of 2.0 kB"]
    cell.work(2000, 2000, "tokenizing")
    cell.stop()
    assert desk.shown[-1] == ""
