"""metrics.jsonl survives crashes and restarts without two values for one step."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import DataError
from jscale.metrics import Jsonl, read_lines
from jscale.metrics.jsonl import JsonlWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, resume, steps, value=1.0):
    writer = JsonlWriter(path, resume, clock=lambda: 1000.5)
    for step in steps:
        writer.scalars(step, {"train/loss": value})
    writer.close()


def test_a_line_is_one_json_object(path):
    writer = JsonlWriter(path, 0, clock=lambda: 1000.5)
    writer.scalars(1, {"train/loss": 2.5, "train/rate": 1e-4})
    writer.text(1, "samples", "two\nlines, naïve")
    writer.close()
    writer.close()
    first, second = map(json.loads, path.read_text("utf-8").splitlines())
    assert first == {
        "step": 1,
        "time": 1000.5,
        "values": {"train/loss": 2.5, "train/rate": 1e-4},
    }
    assert second["text"] == {"samples": "two\nlines, naïve"}


def test_lines_are_on_file_at_once(path):
    writer = JsonlWriter(path, 0)
    writer.scalars(1, {"loss": 1.0})
    assert [line.step for line in read_lines(path)] == [1]
    writer.close()


def test_numbers_that_json_lacks_come_back(path):
    writer = JsonlWriter(path, 0)
    writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strictly JSON
    (line,) = read_lines(path)
    assert math.isnan(line.values["a"])
    assert (line.values["b"], line.values["c"]) == (math.inf, -math.inf)


def test_resume_cuts_back_and_keeps_what_it_cut(path):
    write(path, 0, range(1, 10), value=1.0)
    write(path, 5, range(6, 8), value=2.0)
    found = [(line.step, line.values["train/loss"]) for line in read_lines(path)]
    assert found == [(step, 1.0) for step in range(1, 6)] + [(6, 2.0), (7, 2.0)]
    dropped = path.with_name("metrics.jsonl.dropped")
    assert [line.step for line in read_lines(dropped)] == [6, 7, 8, 9]


def test_a_new_run_in_an_old_folder_starts_empty(path):
    write(path, 0, [1, 2])
    write(path, 0, [1])
    assert [line.step for line in read_lines(path)] == [1]


def test_the_first_value_of_a_name_at_a_step_stands(path):
    write(path, 0, [4, 5], value=1.0)
    writer = JsonlWriter(path, 5)
    writer.scalars(5, {"train/loss": 9.0, "evaluation/loss": 3.0})  # an evaluation done again
    writer.scalars(5, {"evaluation/loss": 4.0})
    writer.close()
    assert [(line.step, line.values) for line in read_lines(path)] == [
        (4, {"train/loss": 1.0}),
        (5, {"train/loss": 1.0}),
        (5, {"evaluation/loss": 3.0}),
    ]


def test_a_torn_last_line_is_moved_aside(path):
    write(path, 0, [1, 2])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "ti')
    assert [line.step for line in read_lines(path)] == [1, 2]
    write(path, 2, [3])
    assert [line.step for line in read_lines(path)] == [1, 2, 3]
    assert path.with_name("metrics.jsonl.dropped").read_bytes() == b'{"step": 3, "ti\n'


def test_a_damaged_line_is_an_error_to_read_and_no_obstacle_to_resume(path):
    write(path, 0, [1, 2])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0\0\0\n" + second)
    with pytest.raises(DataError, match="line 2 is not a line of metrics"):
        list(read_lines(path))
    write(path, 2, [3])
    assert [line.step for line in read_lines(path)] == [1, 2, 3]


@pytest.mark.parametrize("step, time", [(-1, 1.0), (1e308, 1.0), (2**53, 1.0), (2, 1e308)])
def test_a_step_or_time_that_cannot_be_is_an_error_to_read(path, step, time):
    write(path, 0, [1])
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "time": time, "values": {"a": 1.0}}) + "\n")
    with pytest.raises(DataError, match="line 2 is not a line of metrics"):
        list(read_lines(path))


def test_nothing_is_rewritten_when_nothing_is_cut(path):
    write(path, 0, [1, 2])
    before = path.stat().st_ino
    write(path, 2, [3])
    assert path.stat().st_ino == before
    assert not path.with_name("metrics.jsonl.dropped").exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), min_size=1, max_size=5))
def test_no_history_of_restarts_gives_a_step_two_values(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    at = 0
    for back, length in history:
        start = max(0, at - back)
        at = start + length
        write(path, start, range(start, at + 1))
    steps = [line.step for line in read_lines(path)]
    assert steps == sorted(set(steps)) and steps[-1] == at


def test_the_destination_writes_into_the_run_folder(tmp_path):
    writer = Jsonl().open(tmp_path / "run", 0)
    writer.scalars(1, {"loss": 1.0})
    writer.close()
    assert (tmp_path / "run" / "metrics.jsonl").exists()
