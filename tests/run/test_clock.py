"""Every second of a run belongs to one phase, and each start leaves its record."""

import json
from pathlib import Path

import pytest
from run.tiny import tiny, train

from jscale.compiled import Compilation
from jscale.run.clock import Clock
from jscale.run.starts import Starts, read_starts


def test_the_innermost_phase_has_the_time() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    wait(1)
    with clock.phase("training steps"):
        wait(10)
        with clock.phase("compiling"):
            wait(100)
            with clock.phase("saving"):
                wait(1000)
        assert clock.seconds["training steps"] == 10, "what still runs is counted too"
        wait(20)
    wait(2)
    found = clock.seconds
    assert found == {"other": 3, "training steps": 30, "compiling": 100, "saving": 1000}
    assert sum(found.values()) == now[0]


def test_a_phase_that_is_left_late_harms_no_other() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])

    def steps():
        with clock.phase("training steps"):
            yield

    loop = steps()
    next(loop)
    now[0] += 1
    with clock.phase("saving"):
        now[0] += 10
        loop.close()
        now[0] += 10
    now[0] += 5
    assert clock.seconds == {"training steps": 1, "saving": 20, "other": 5}


def test_a_phase_that_fails_ends() -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock.phase("failing"):
        _ = 1 / 0
    before = clock.seconds["failing"]
    assert clock.seconds["failing"] == before


def test_each_start_has_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "starts.json"
    first = Starts(path, 0, {"processes": 1}, spent=5.0, clock=lambda: 100.0)
    first.compiled(Compilation(2.5, (), 1000))
    first.know(peak={"flops": 1.0, "origin": "measured"})
    first.write(3, {"other": 7.0})
    first.write(4, {"other": 8.0})
    second = Starts(path, 4, {"processes": 2}, clock=lambda: 200.0)
    second.write(9, {"other": 1.0})
    one, two = read_starts(path)
    assert (one["began"], one["from_step"], one["to_step"], one["seconds"]) == (
        95.0,
        0,
        4,
        {"other": 8.0},
    )
    assert one["compiled"] == [{"seconds": 2.5, "changed": [], "memory": 1000}]
    assert one["peak"] == {"flops": 1.0, "origin": "measured"}
    assert (two["from_step"], two["to_step"], two["processes"]) == (4, 9, 2)


@pytest.mark.parametrize("text", ["", "{", "3", "[3]", '{"a": 1}'])
def test_a_damaged_file_is_begun_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / "starts.json"
    path.write_text(text)
    assert read_starts(path) == []
    Starts(path, 0, {}).write(1, {"other": 1.0})
    assert len(read_starts(path)) == 1


def test_a_run_records_its_starts_and_its_layout(tmp_path: Path) -> None:
    for steps in (3, 5):
        train(tiny(tmp_path, steps=steps, samples=None, evaluation=None), tmp_path / "run")
    found = read_starts(tmp_path / "run" / "starts.json")
    assert [(s["from_step"], s["to_step"]) for s in found] == [(0, 3), (3, 5)]
    for start in found:
        assert {"training steps", "compiling the train step", "other"} <= start["seconds"].keys()
        assert sum(start["seconds"].values()) == pytest.approx(
            start["written"] - start["began"], abs=0.5
        )
        assert start["compiled"][0]["memory"] > 0 and start["devices"] == {
            "count": 8,
            "kind": "cpu",
        }
    layout = json.loads((tmp_path / "run" / "layout.json").read_text())
    assert layout["mesh"]["fsdp"] == 8 and layout["count"] == sum_of_sizes(layout)


def sum_of_sizes(layout: dict) -> int:
    total = 0
    for parameter in layout["parameters"].values():
        size = 1
        for dimension in parameter["dimensions"]:
            size *= dimension["size"]
        total += size
    return total
