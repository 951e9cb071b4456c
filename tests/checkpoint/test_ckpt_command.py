"""`jscale ckpt`: tells what is there, finds damage, and changes nothing."""

import shutil

import pytest
from checkpoint.states import make_state

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.store import Store
from jscale.errors import CheckpointError, UserError
from jscale.launch.commands.ckpt import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with Store(folder / "checkpoints", Checkpoints()) as store:
        for step in (1, 2):
            store.save(step, make_state(seed=step), {"data": {"position": 100 * step}})
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def flip(run):
    largest = max((run / "checkpoints" / "2").rglob("*/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def told(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out.splitlines()


def test_list(run, capsys):
    status, lines = told(capsys, "list", run)
    assert status == 0 and lines[0].split() == ["step", "saved", "size", "arrays", "state", "data"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert all("complete" in line and " 10 " in line for line in lines[1:])
    assert lines[2].endswith("200")


def test_list_names_what_is_not_whole(run, capsys):
    checkpoints = run / "checkpoints"
    (checkpoints / "2" / "commit_success.txt").unlink()
    (checkpoints / "3").mkdir()
    (checkpoints / "4.orbax-checkpoint-tmp").mkdir()
    (checkpoints / "damaged" / "0").mkdir(parents=True)
    text = "\n".join(told(capsys, "list", run)[1])
    assert "damaged: commit_success.txt is missing in 2" in text
    assert "damaged: its folder is empty" in text
    assert "being written, or left by a killed run" in text and "set aside in" in text


def test_inspect(run, capsys):
    status, lines = told(capsys, "inspect", run)
    assert status == 0 and "step 2: 10 of 10 arrays" in "\n".join(lines)
    status, lines = told(capsys, "inspect", run, "--step", 1, "--param", "params/*h*")
    names = [line.split()[0] for line in lines[1:3]]
    assert names == ["params/eighth", "params/half"]
    assert "bfloat16[8 3]" in lines[2] and 'noted: {"data": {"position": 100}}' in lines
    with pytest.raises(CheckpointError, match="no array of step 2 matches 'nothing'"):
        told(capsys, "inspect", run, "--param", "nothing")


def test_verify(run, capsys):
    assert told(capsys, "verify", run)[0] == 0
    flip(run)
    status, lines = told(capsys, "verify", run)
    assert status == 66 and lines[0].startswith("step 1: sound, 10 arrays")
    assert any("up' has fingerprint" in line for line in lines[1:])
    assert told(capsys, "verify", run, "--step", 1)[0] == 0
    assert told(capsys, "verify", run, "--step", 2)[0] == 66


@pytest.mark.parametrize("command", ["list", "inspect", "verify"])
def test_nothing_is_changed(run, capsys, command):
    flip(run)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    told(capsys, command, run / "checkpoints")
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["list", "nowhere"], "there is no run in nowhere"),
        (["list", "."], "there is no checkpoint in"),
        (["verify", "run", "--step", "7"], "has no step 7; the steps there are: 1, 2"),
        (["inspect", "run", "--step", "7"], "has no step 7; the steps there are: 1, 2"),
        (["list"], "run"),
        (["lst", "run"], "lst"),
    ],
)
def test_mistakes_are_one_sentence(run, monkeypatch, arguments, message):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=message):
        main(arguments)
