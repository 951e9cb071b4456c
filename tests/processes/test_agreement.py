"""Processes that might decide differently: they agree, or refuse with one sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes.releases import SPLIT, released
from run.tiny import environment, tiny, write_recipe

from jscale.errors import ConfigError
from jscale.launch.join import Place, place_in
from jscale.launch.local import Job, cause, reserved_port
from jscale.mesh import MeshShape
from jscale.run.peers import is_lost_peer
from jscale.run.trainer import Trainer

WORKER = """
import os, sys
from pathlib import Path
from jscale.launch.join import join, leave, place_in
from jscale.mesh import MeshShape, simulate
from jscale.errors import ConfigError, DataError
from run.tiny import tiny

place, folder = place_in(os.environ), Path(sys.argv[1])
simulate(1)
join(place)
print = lambda *words: sys.stdout.write(" ".join(map(str, words)) + "\\n")

from jscale.checkpoint.agreement import all_come, anywhere, first_decides, said
from jscale.run.trainer import Trainer

def refused(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("not refused")

def fail():
    raise DataError("no such data")

me = place.process
assert first_decides(lambda: ["of", me]) == ["of", 0]
assert refused(DataError, lambda: first_decides(fail)) == "no such data"
assert said(f"I am {me}" if me else None) == {1: "I am 1"}
assert anywhere(me == 1) and not anywhere(False)
assert all_come("both", 60.0)
assert not (me == 1 and all_come("one", 0.1))

mesh = MeshShape(data=2)
print(refused(ConfigError, lambda: Trainer(tiny(folder, mesh=mesh, seed=me), folder / "a")))
print(refused(ConfigError, lambda: Trainer(tiny(folder, mesh=MeshShape()), folder / "a")))
with Trainer(tiny(folder, mesh=mesh, steps=3, samples=None), folder / "run") as trainer:
    trainer.fit()
    print(trainer.evaluate(1)["loss"])
    print([round(float(x), 4) for x in trainer.predict(["def f(x):", "import os"])[1]])
    print(trainer.generate(["def "], length=4, seed=1))

from processes.releases import read
print(*read(folder / "release"))
leave()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """What each of two processes says."""
    folder = tmp_path_factory.mktemp("agreement")
    write_recipe(folder)
    tiny(folder)
    released(folder / "release")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with reserved_port() as port:
        places = [Place(f"127.0.0.1:{port}", 2, process) for process in range(2)]
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(folder)],
                env={**environment(), **place.environment},
                **pipes,
            )
            for place in places
        ]
        try:
            out = [worker.communicate(timeout=240) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
    assert [worker.returncode for worker in workers] == [0, 0], out
    return folder, [said.splitlines() for said, _ in out]


def test_different_programs_are_refused_on_every_process(
    told: tuple[Path, list[list[str]]],
) -> None:
    for lines in told[1]:
        assert "process 1 differs from process 0" in lines[0]
        assert "recipe seed is 1, not 0; start all processes" in lines[0]
        assert lines[1].startswith("the mesh uses 1 of 2 devices and none of process 1")
    assert not (told[0] / "a").exists()


def test_several_processes_evaluate_predict_and_generate_as_one(
    told: tuple[Path, list[list[str]]],
) -> None:
    folder, (first, second) = told
    assert first == second
    recipe = tiny(folder, mesh=MeshShape(data=2), steps=3, samples=None)
    with Trainer(recipe, folder / "run") as trainer:
        assert trainer.step == 3
        np.testing.assert_allclose(trainer.evaluate(1)["loss"], float(first[2]), 1e-6)
        predicted = trainer.predict(["def f(x):", "import os"])[1]
        np.testing.assert_allclose(predicted, eval(first[3]), atol=1e-4)
        assert str(trainer.generate(["def "], length=4, seed=1)) == first[4]


def test_of_a_release_each_process_reads_what_its_devices_hold(
    told: tuple[Path, list[list[str]]],
) -> None:
    """Half of what is split over both, whether an array's own sizes are or how many there are."""
    for lines in told[1]:
        parts = dict(zip(SPLIT, map(float, lines[5].split()), strict=True))
        assert parts == {"nothing": 1.0, "layers": 0.5, "sizes": 0.5}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"JSCALE_PROCESS": ""}, "JSCALE_PROCESS is not: set all three"),
        ({"JSCALE_COORDINATOR": "host"}, "is not host:port"),
        ({"JSCALE_PROCESS": "2"}, "must be a number from 0"),
        ({"JSCALE_PROCESSES": "two"}, "must be a number from 0"),
    ],
)
def test_a_wrong_place_is_refused(changes: dict[str, str], says: str) -> None:
    right = Place("127.0.0.1:1", 2, 1)
    assert place_in(right.environment) == right and place_in({}) is None
    with pytest.raises(ConfigError, match=says):
        place_in({**right.environment, **changes})


def test_the_process_is_named_that_ended_the_others() -> None:
    assert cause({1: 71, 0: -6, 2: -9}) == 2  # a kill, and what followed from it
    assert cause({3: 64, 2: 64, 0: 64}) == 0  # a mistake of all
    assert cause({0: 0, 1: 3}) == 1  # one was done, another failed
    assert cause({1: 0, 0: 71}) == 1  # one left as if all were done, and was missed


def test_a_lost_peer_is_told_from_other_errors() -> None:
    lost = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    assert is_lost_peer(lost) and not is_lost_peer(ValueError("x")) and not is_lost_peer(None)


def test_the_commands_are_shown_as_one_would_type_them(tmp_path: Path) -> None:
    job = Job(("train", "tiny", "--devices", "2"), 2, 2, tmp_path)
    first, second = job.shown(1234)
    assert "JSCALE_COORDINATOR=127.0.0.1:1234 JSCALE_PROCESSES=2 JSCALE_PROCESS=0 " in first
    assert first.endswith("jscale train tiny --devices 2 &")
    assert f">> {tmp_path}/logs/process_1.txt 2>&1 &" in second
