"""However a job ends, all its processes end, soon, with one status and one sentence."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from run.tiny import (
    call,
    environment,
    finish,
    start,
    tiny,
    train,
    wait_for,
    write_recipe,
    written,
)

from jscale.mesh import MeshShape

LAUNCH = ("launch", "local", "--processes", 2, "--devices-per-process", 1)
ENDLESS = ("steps=1000000", "evaluation=None", "samples=None", "checkpoints.every=1000000")
SOON = 20.0  # seconds, of a machine that does much else

AT_START = """
import os
from jscale.errors import ConfigError
from jscale.losses import NextToken
from jscale.mesh import MeshShape
from run.tiny import *


def recipe():
    if os.environ.get("JSCALE_PROCESS") == "{who}":
        {act}
    return tiny(Path({folder!r}))
"""

LEAVES = """

class Leaves(NextToken):
    def __call__(self, *arguments):
        if os.environ["JSCALE_PROCESS"] == "1":
            os._exit(0)
        return super().__call__(*arguments)


def leaves():
    return replace(recipe(), loss=Leaves(), mesh=MeshShape(fsdp=2))
"""


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """The process ids of a launcher's processes, in their order."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    places = [(place_of(int(pid)), int(pid)) for pid in found]
    return [pid for _, pid in sorted((place, pid) for place, pid in places if place is not None)]


def place_of(pid: int) -> int | None:
    told = Path(f"/proc/{pid}/environ").read_bytes().decode()
    found = re.search(r"JSCALE_PROCESS=(\d+)", told)
    return int(found[1]) if found else None


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # of a parent that is not ours to wait for


def has_thread(pid: int, name: str) -> bool:
    """Whether a process has a thread whose name begins so."""
    found = Path(f"/proc/{pid}/task").glob("*/comm")
    return any(path.read_text().startswith(name) for path in found)


def all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if all(map(gone, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that they share the tokens."""
    return tmp_path_factory.mktemp("ends")


def stop_one(folder: Path, file: Path) -> int:
    """Send SIGTERM to one of the processes; the step that was saved."""
    child = start(*LAUNCH, file, "--run", "run", *ENDLESS, cwd=folder)
    wait_for(child, r"^step 10/")
    pids = workers(child)
    os.kill(pids[1], signal.SIGTERM)
    status, out, err = finish(child)
    assert status == 75 and "jscale:" not in err, err
    assert all_gone(pids)
    found = re.search(r"stopped; step (\d+) is saved", out)
    assert found, out
    log = (folder / "run" / "logs" / "process_1.txt").read_text()
    assert f"stopped; step {found[1]} is saved" in log
    return int(found[1])


def interrupt(folder: Path, file: Path, after: int) -> int:
    """Send Ctrl-C to the launcher; the step that was saved."""
    child = start(*LAUNCH, file, "--run", "run", *ENDLESS, cwd=folder)
    wait_for(child, rf"^going on from step {after}\n")
    wait_for(child, r"^step \d+/")
    pids = workers(child)
    child.send_signal(signal.SIGINT)
    status, out, err = finish(child)
    assert status == 130 and "jscale:" not in err, err
    assert all_gone(pids)
    found = re.search(r"stopped; step (\d+) is saved", out)
    assert found, out
    return int(found[1])


def test_stopped_jobs_go_on_as_if_they_had_not_been_stopped(folder: Path) -> None:
    file = write_recipe(folder, "mesh=MeshShape(fsdp=2), batch=4")
    first = stop_one(folder, file)
    second = interrupt(folder, file, after=first)
    assert second > first
    recipe = tiny(folder, mesh=MeshShape(fsdp=2), batch=4, steps=second, evaluation=None)
    train(recipe, folder / "straight")
    ours = dict(written(folder / "run", "train/loss"))
    straight = dict(written(folder / "straight", "train/loss"))
    assert list(ours) == list(straight) == list(range(1, second + 1))
    left, right = list(ours.values()), list(straight.values())
    # The first steps: later, rounding has grown.
    np.testing.assert_allclose(left[:10], right[:10], rtol=1e-6)
    np.testing.assert_allclose(left, right, rtol=1e-3)


def test_a_killed_process_ends_the_job_with_one_sentence(folder: Path) -> None:
    file = write_recipe(folder, "mesh=MeshShape(fsdp=2), batch=4")
    child = start(*LAUNCH, file, "--run", "killed", *ENDLESS, cwd=folder)
    wait_for(child, r"^step \d+/")
    pids = workers(child)
    begun = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    status, out, err = finish(child)
    assert time.monotonic() - begun < SOON
    assert status == 137 and all_gone(pids)
    assert err.count("jscale: error:") == 1 and "Traceback" not in err, err
    assert "process 1 of 2 was ended by SIGKILL; run it again to go on" in err
    assert "the end of killed/logs/process_1.txt:" in err


def test_no_process_outlives_a_killed_launcher(folder: Path) -> None:
    file = write_recipe(folder, "mesh=MeshShape(fsdp=2), batch=4")
    child = start(*LAUNCH, file, "--run", "orphans", *ENDLESS, cwd=folder)
    wait_for(child, "^reading the data")
    pids = workers(child)
    child.kill()
    finish(child)
    assert len(pids) == 2 and all_gone(pids)


@pytest.mark.parametrize(
    ("act", "status", "says"),
    [
        ("os._exit(3)", 3, "process 1 of 2 ended with status 3; run it again"),
        ("raise ConfigError('no such thing')", 64, "process 1 of 2: own.py:11: no such thing"),
        ("os.kill(os.getpid(), 9)", 137, "process 1 of 2 was ended by SIGKILL"),
    ],
    ids=["exit", "mistake", "kill"],
)
def test_a_process_that_dies_at_its_start(tmp_path: Path, act: str, status: int, says: str) -> None:
    (tmp_path / "own.py").write_text(AT_START.format(who=1, act=act, folder=str(tmp_path)))
    child = start(*LAUNCH, "own.py", "--run", "run", cwd=tmp_path)
    found, out, err = finish(child)
    assert found == status, err
    assert err.count("jscale: error:") == 1 and says in err
    assert (tmp_path / "run").exists() == (status != 64)  # a mistake leaves no folder behind


def test_the_first_process_too_is_spoken_for_when_it_dies_silently(tmp_path: Path) -> None:
    text = AT_START.format(who=0, act="os._exit(3)", folder=str(tmp_path))
    (tmp_path / "own.py").write_text(text)
    status, _, err = call(*LAUNCH, "own.py", "--run", "run", cwd=tmp_path)
    assert status == 3 and "jscale: error: process 0 of 2 ended with status 3; run it" in err
    assert err.count("jscale: error:") == 1


@pytest.mark.slow
def test_a_process_that_ends_well_before_the_others_is_named(tmp_path: Path) -> None:
    """What befalls the others, who have lost it, is told by nobody."""
    text = AT_START.format(who=1, act="pass", folder=str(tmp_path))
    (tmp_path / "own.py").write_text(text + LEAVES)
    status, _, err = call(*LAUNCH, "own.py:leaves", "--run", "run", cwd=tmp_path)
    assert status == 71, err
    assert "process 1 of 2 ended before the others, as if all were done; run it again" in err
    assert err.count("jscale: error:") == 1


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_job_with_no_place_for_its_folder_starts_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    status, out, err = call(*LAUNCH, "tiny", "--run", place, cwd=tmp_path)
    assert (status, out) == (66, "") and err.count("jscale: error:") == 1
    assert f"{place}/logs cannot be written: Not a directory" in err


@pytest.mark.slow
def test_two_signals_end_a_job_at_once(folder: Path) -> None:
    file = write_recipe(folder, "mesh=MeshShape(fsdp=2), batch=4")
    child = start(*LAUNCH, file, "--run", "twice", *ENDLESS, cwd=folder)
    wait_for(child, r"^step \d+/")
    pids = workers(child)
    child.send_signal(signal.SIGINT)
    time.sleep(0.05)  # two at the same moment are one
    child.send_signal(signal.SIGINT)
    status, out, err = finish(child)
    assert status == 130 and all_gone(pids) and "Traceback" not in err
    saved = "is saved, run it again" in out  # between the two, on an idle machine
    assert saved or "jscale: error: ended before it could save; run it again to go on" in err


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        place = f"127.0.0.1:{holder.getsockname()[1]}"
        told = {"JSCALE_COORDINATOR": place, "JSCALE_PROCESSES": "2", "JSCALE_PROCESS": "0"}
        child = start("train", "tiny", cwd=tmp_path, env={**environment(), **told})
        status, out, err = finish(child)
    assert (status, out) == (64, "") and not list(tmp_path.iterdir())
    assert err.startswith(f"jscale: error: JSCALE_COORDINATOR={place}: process 0 cannot listen")
    assert err.endswith("Address already in use; choose another port\n")


def test_a_process_that_waits_for_the_others_hears_ctrl_c(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{holder.getsockname()[1]}"
    told = {"JSCALE_COORDINATOR": place, "JSCALE_PROCESSES": "2", "JSCALE_PROCESS": "1"}
    child = start("train", "tiny", cwd=tmp_path, env={**environment(), **told})
    deadline = time.monotonic() + SOON
    while not has_thread(child.pid, "grpc_global") and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    status, out, err = finish(child)
    assert status == 130 and out == "stopped; nothing is lost, run it again to go on\n"


def test_ctrl_c_before_the_first_step_ends_all(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    child = start(*LAUNCH, file, "--run", "run", cwd=tmp_path)
    deadline = time.monotonic() + SOON
    while len(pids := workers(child)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    status, _, err = finish(child)
    assert status == 130 and all_gone(pids) and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tiny", "model.dmi=4"), "did you mean 'model.dim'?"),
        (("no_such_recipe",), "no_such_recipe"),
        (("tiny", "--processes", "0"), "--processes takes a number from 1 to 256, not 0"),
        (("tiny", "--devices-per-process", "0"), "--devices-per-process takes a number"),
    ],
)
def test_a_wrong_command_starts_nothing_and_is_told_once(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    status, out, err = call("launch", "local", "--processes", 2, *words, cwd=tmp_path)
    assert status == 64 and out == "" and not list(tmp_path.iterdir())
    assert err.count("jscale: error:") == 1 and says in err


def test_a_mistake_that_all_processes_find_is_told_once(tmp_path: Path) -> None:
    status, out, err = call(*LAUNCH, "tiny", "mesh=MeshShape(fsdp=4)", "--run", "run", cwd=tmp_path)
    assert status == 64, (out, err)
    assert err.count("jscale: error:") == 1 and "needs 4 devices and there are 2" in err
    assert not list(tmp_path.iterdir())  # no folder of a run that never was
