"""Four processes of two devices compute what one of eight does, and read its checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run.tiny import call, tiny, train, write_recipe, written

from jscale.mesh import MeshShape
from jscale.run.trainer import Trainer

STEPS = 8
LONGER = 10
CHANGES = "mesh=MeshShape(data=2, fsdp=4), steps=8, checkpoints=Checkpoints(every=4, keep=99)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("equal")


def changed(folder: Path, steps: int):
    from jscale.checkpoint import Checkpoints

    checkpoints = Checkpoints(every=4, keep=99)
    mesh = MeshShape(data=2, fsdp=4)
    return tiny(folder, mesh=mesh, steps=steps, checkpoints=checkpoints)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run of one process, with eight devices."""
    train(changed(folder, STEPS), folder / "alone")
    return folder / "alone"


@pytest.fixture(scope="module")
def together(folder: Path) -> tuple[Path, str]:
    """The run of four processes with two devices each, and what it printed."""
    file = write_recipe(folder, CHANGES)
    command = ("launch", "local", "--processes", 4, file, "--run", "together")
    status, out, err = call(*command, cwd=folder)
    assert status == 0 and "jscale:" not in err, (out, err)
    return folder / "together", out


def same(left: Path, right: Path, name: str = "train/loss") -> bool:
    a, b = written(left, name), written(right, name)
    assert a and [step for step, _ in a] == [step for step, _ in b]
    np.testing.assert_allclose([v for _, v in a], [v for _, v in b], rtol=1e-6)
    return True


@pytest.mark.parametrize("name", ["train/loss", "train/tokens", "heldout/loss"])
def test_the_curves_are_equal(alone: Path, together: tuple[Path, str], name: str) -> None:
    assert same(alone, together[0], name)


def test_only_the_first_process_speaks_and_writes(together: tuple[Path, str]) -> None:
    run, out = together
    assert out.count(f"step {STEPS}/{STEPS} ") == 1 and "Gloo" not in out
    assert "on 8 device(s) of 4 processes" in out
    assert [step for step, _ in written(run, "train/loss")] == list(range(1, STEPS + 1))
    assert (run / "samples.txt").read_text().count(f"--- step {STEPS}: ") == 1
    about = json.loads((run / "environment.json").read_text())
    assert about["processes"] == 4 and len(about["hosts"]) == 4 and about["devices"]["count"] == 8
    layout = json.loads((run / "layout.json").read_text())
    assert layout["processes"] == [0, 0, 1, 1, 2, 2, 3, 3]
    logs = sorted(path.name for path in (run / "logs").iterdir())
    assert logs == ["process_1.txt", "process_2.txt", "process_3.txt"]
    assert f"step {STEPS}/{STEPS} " in (run / "logs" / "process_3.txt").read_text()


def test_one_process_goes_on_from_the_checkpoint_of_four(
    folder: Path, alone: Path, together: tuple[Path, str]
) -> None:
    straight, here = folder / "alone-longer", folder / "together-longer"
    for source, target in ((alone, straight), (together[0], here)):
        shutil.copytree(source, target)
        with Trainer(changed(folder, LONGER), target) as trainer:
            assert trainer.step == STEPS
            trainer.fit()
    assert same(straight, here)


def test_four_processes_go_on_from_the_checkpoint_of_one(folder: Path, alone: Path) -> None:
    begun = folder / "begun-alone"
    shutil.copytree(alone, begun)
    shutil.rmtree(begun / "checkpoints" / str(STEPS))
    file = write_recipe(folder, CHANGES)
    command = ("launch", "local", "--processes", 4, file, "--run", begun, "samples=None")
    status, out, err = call(*command, cwd=folder)
    assert status == 0 and "jscale:" not in err, (out, err)
    assert "going on from step 4" in out
    assert same(alone, begun)
