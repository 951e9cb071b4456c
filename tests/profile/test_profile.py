"""Steps really traced: what is recorded of them adds up and shows what was put in."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run.tiny import call, tiny, write_recipe

from jscale import train
from jscale.errors import ConfigError, DataError
from jscale.launch.cli import main
from jscale.mesh import MeshShape
from jscale.mesh.hlo import read
from jscale.prepare import batch_of, real_mesh, task_of
from jscale.profile import Profile, profile_of, read_trace, record
from jscale.profile.record import check_folder, check_steps
from jscale.profile.trace import trace_file

SLEEP = 0.3
RECIPE = """from pathlib import Path
from jscale.mesh import MeshShape
from run.tiny import tiny

def recipe():
    return tiny(Path({folder!r}), mesh=MeshShape({mesh}))
"""


def profile(folder: Path, mesh: str, *arguments: str) -> int:
    """`jscale profile` of the tiny recipe on a mesh."""
    file = folder / "recipe.py"
    file.write_text(RECIPE.format(folder=str(folder), mesh=mesh))
    return main(["profile", str(file), "--steps", "2", *arguments])


@pytest.fixture(scope="module", params=["", "data=2, fsdp=2, tensor=2"], ids=["one", "eight"])
def profiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """How many devices, and a profile of the tiny recipe on them."""
    folder = tmp_path_factory.mktemp("profiled")
    assert profile(folder, request.param, "--out", str(folder / "out"), "--json") == 0
    return (8 if request.param else 1), folder / "out"


def test_the_costs_of_all_scopes_add_up_to_the_busy_time(profiled: tuple[int, Path]) -> None:
    devices, out = profiled
    found = json.loads((out / "profile.json").read_text())
    assert (found["devices"], found["steps"]) == (devices, 2)
    assert sum(cost["seconds"] for cost in found["costs"]) == pytest.approx(found["busy"])
    window = found["busy"] + found["waiting"] + found["idle"]
    assert 0 < found["busy"] <= window <= 1.05 * found["step"]
    assert found["exposed"] <= found["collectives"] <= found["busy"]


def test_scopes_read_like_the_model(profiled: tuple[int, Path]) -> None:
    found = json.loads((profiled[1] / "profile.json").read_text())
    names = {(cost["scope"], cost["backward"]) for cost in found["costs"]}
    both = ["layers/attend", "layers/feed", "unembed"]
    assert {(name, back) for name in both for back in (False, True)} <= names
    assert {("optimizer", False), ("embed", False)} <= names


def test_only_a_mesh_has_collectives(profiled: tuple[int, Path]) -> None:
    devices, out = profiled
    found = json.loads((out / "profile.json").read_text())
    assert (found["collectives"] > 0) == (devices > 1)


def test_the_trace_is_there_for_xprof_and_for_perfetto(profiled: tuple[int, Path]) -> None:
    devices, out = profiled
    trace = read_trace(trace_file(out))
    assert sorted(trace.events) == list(range(devices))
    assert all(len(runs) == 2 for runs in trace.runs.values())
    assert list(out.glob("plugins/profile/*/perfetto_trace.json.gz"))
    program = read((out / "step.hlo.txt").read_text())
    assert program.devices == devices
    ours = [e for e in trace.events[0] if e.module == program.name]
    assert ours and all(event.op in program.instructions for event in ours)


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path, "", "--out", str(tmp_path / "out")) == 0
    assert profile(tmp_path, "", "--out", str(tmp_path / "out")) == 0  # again, beside the first
    out = capsys.readouterr().out
    assert "layers/" in out and " backward" in out  # of many scopes, the costliest
    assert "ms a step" in out and "(unattributed)" in out
    for line in ("step  ", "compile  ", "collectives  ", "host gaps  ", "idle  "):
        assert line in out, line
    assert "exposed (0.0% of busy)" in out
    shown = out.split("ui.perfetto.dev    (open ")[1].split(")")[0]
    assert Path(shown).is_file()


def batches(task: train.Task, recipe: Any, sleep: float) -> Iterator[Any]:
    """Batches of ones, each after some sleep of the host once the devices have nothing to do."""
    like = batch_of(recipe, task.layout)
    while True:
        time.sleep(sleep)
        yield {n: jax.device_put(np.ones(s.shape, s.dtype), s.sharding) for n, s in like.items()}


def measured(tmp_path: Path, sleep: float) -> Profile:
    recipe = tiny(tmp_path, mesh=MeshShape())
    task = task_of(recipe, real_mesh(recipe)[0])
    state = train.init(task, jax.random.key(0))
    found = record(task, state, batches(task, recipe, sleep), 2, tmp_path / "out")
    program = read(found.program.as_text())
    return profile_of(read_trace(trace_file(found.folder)), program, found.timing)


def test_a_host_that_sleeps_leaves_a_gap(tmp_path: Path) -> None:
    found = measured(tmp_path, SLEEP)
    assert found.data >= SLEEP
    # Two steps have one gap between them: the sleep, less what the first step took.
    assert found.waiting >= (SLEEP - found.step) / 2 and found.waiting > found.busy / 10
    assert found.waiting <= found.step


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_so_many_steps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"a number from 1 to 1000, not {steps}"):
        check_steps(steps)


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    (tmp_path / "plugins").mkdir()
    check_folder(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds other things \(thesis.tex\)"):
        check_folder(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(tmp_path / "thesis.tex")


def test_a_folder_that_cannot_be_made_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["profile", "tiny", "--out", str(tmp_path / "file" / "out")]) == 66
    out, err = capsys.readouterr()
    where = f"{tmp_path}/file/out"
    assert (out, err) == ("", f"jscale: error: {where} cannot be written: Not a directory\n")
    assert main(["profile", "tiny", "--steps", "0"]) == 64
    assert "a number from 1 to 1000, not 0" in capsys.readouterr().err


def test_a_trace_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plugins").touch()  # where the profiler wants a folder
    # In a process of its own, for JAX's profiler cannot be started again after that.
    command = ("profile", write_recipe(tmp_path), "--steps", 1, "--devices", 1, "--out", "out")
    status, out, err = call(*command, cwd=tmp_path)
    assert (status, out) == (66, "") and err.count("\n") == 1
    assert err.startswith("jscale: error: the trace cannot be written into out: ")


@pytest.mark.parametrize("name", ["step.hlo.txt", "profile.json"])
def test_a_file_beside_the_trace_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    assert profile(tmp_path, "", "--out", str(tmp_path / "out")) == 66
    out, err = capsys.readouterr()
    assert f"out/{name} cannot be written: Is a directory" in err
    assert ("ms a step" in out) == (name == "profile.json")  # the figures come first


def test_a_trace_that_is_missing_or_damaged_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no trace"):
        trace_file(tmp_path)
    file = tmp_path / "plugins" / "profile" / "now" / "host.xplane.pb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff" * 100)
    assert trace_file(tmp_path) == file
    with pytest.raises(DataError, match="is no trace that can be read"):
        read_trace(file)
    with pytest.raises(DataError, match="is no trace that can be read"):
        read_trace(tmp_path / "nothing.xplane.pb")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--steps", "0"], "--steps takes a number from 1 to 1000, not 0"),
        (["tinny"], "did you mean 'tiny'"),
        (["tiny", "--steps", "x"], "invalid int value: 'x'"),
        (["tiny", "--devices", "0"], "--devices takes a number"),
        (["tiny", "--out", "full"], "holds other things (a.txt)"),
        (["tiny", "data.batch=16", "mesh=MeshShape(fsdp=16)"], "needs 16 devices and there are 8"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    assert main(["profile", *arguments]) == 64
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
