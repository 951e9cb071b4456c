"""Twenty steps in one go, and twenty steps with kills between them, are the same bits."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run.tiny import environment, prints, tiny, written

from jscale.mesh import MeshShape
from jscale.run.trainer import Trainer

DRIVER = """
import os, signal, sys, threading, time
from pathlib import Path
from jscale.run.events import Saved
from jscale.mesh import MeshShape, simulate
from jscale.run.trainer import Trainer

devices, when, at = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
simulate(devices)
from run.tiny import tiny

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def saved(event):
    if when == "save" and isinstance(event, Saved) and event.step >= at:
        die()

here = Path(".")
with Trainer(tiny(here, mesh=MeshShape(fsdp=devices)), "run", callbacks=[saved]) as trainer:
    if when == "seconds":
        threading.Timer(at, die).start()
    for step, _ in trainer:
        if when == "step" and step >= at:
            die()
"""


def drive(folder: Path, devices: int, when: str = "never", at: float = 0) -> int:
    """Train in a process of its own, killed as told; how it ended."""
    command = [sys.executable, "-c", DRIVER, str(devices), when, str(at)]
    found = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert found.returncode in (0, -9), found.stderr
    return found.returncode


def assert_same_run(found: Path, wanted: Path) -> None:
    assert prints(found, 20) == prints(wanted, 20)
    assert written(found, "train/loss") == written(wanted, "train/loss")
    assert [step for step, _ in written(found, "train/loss")] == list(range(1, 21))
    assert written(found, "heldout/loss") == written(wanted, "heldout/loss")
    assert (found / "samples.txt").read_text() == (wanted / "samples.txt").read_text()


@pytest.fixture(
    params=[
        pytest.param(8, id="fsdp=8"),
        pytest.param(1, id="one device", marks=pytest.mark.slow),
    ]
)
def straight(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """Twenty steps in one go, in this process."""
    mesh = MeshShape(fsdp=request.param)
    with Trainer(tiny(tmp_path, mesh=mesh), tmp_path / "straight") as trainer:
        trainer.fit()
    return request.param, tmp_path / "straight"


def test_a_run_that_is_killed_ends_in_the_same_bits(straight: tuple[int, Path]) -> None:
    devices, wanted = straight
    folder = wanted.parent
    # After a step that no checkpoint knows of; while a save has just begun.
    assert drive(folder, devices, "step", 13) == -9
    if devices > 1:
        assert drive(folder, devices, "save", 15) == -9
    assert drive(folder, devices) == 0
    assert_same_run(folder / "run", wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_at_random_moments(straight: tuple[int, Path], seed: int) -> None:
    devices, wanted = straight
    chance = np.random.default_rng(seed)
    for _ in range(8):
        drive(wanted.parent, devices, "seconds", chance.uniform(0.5, 4))
    assert drive(wanted.parent, devices) == 0
    assert_same_run(wanted.parent / "run", wanted)


def test_a_run_goes_on_on_other_meshes(tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path, mesh=MeshShape(fsdp=8)), tmp_path / "straight") as trainer:
        trainer.fit()
    wanted = dict(written(tmp_path / "straight", "train/loss"))
    meshes = [MeshShape(fsdp=8), MeshShape(data=2, tensor=2), MeshShape()]
    for mesh, stop in zip(meshes, (5, 10, 20), strict=True):
        with Trainer(tiny(tmp_path, mesh=mesh), tmp_path / "run") as trainer:
            at = trainer.step
            if at:
                copied = copy_of(trainer, tmp_path / "copy", at + 1)
                now, was = prints(copied, at + 1), prints(tmp_path / "run", at)
                params = [name for name in was if name.startswith("params")]
                assert params and {n: now[n] for n in params} == {n: was[n] for n in params}
            for step, _ in trainer:
                if step == stop:
                    trainer.save()
                    break
    found = dict(written(tmp_path / "run", "train/loss"))
    assert found.keys() == wanted.keys()
    for step, loss in found.items():
        assert abs(loss - wanted[step]) <= 1e-6 * wanted[step], step


def copy_of(trainer: Trainer, folder: Path, step: int) -> Path:
    """A run's folder with the trainer's state as its only checkpoint."""
    from jscale.checkpoint import Checkpoints
    from jscale.checkpoint.store import Store

    shutil.rmtree(folder, ignore_errors=True)
    with Store(folder / "checkpoints", Checkpoints()) as store:
        store.save(step, trainer.state)
    return folder
