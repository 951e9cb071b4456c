"""Ctrl-C and SIGTERM: a run stops soon, with a status that tells, and goes on as if it had not."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run.tiny import call, environment, finish, prints, start, tiny, wait_for, write_recipe, written

from jscale.run.trainer import Trainer
from jscale.signals import Signals, Stopped

ENDLESS = ("steps=1000000", "evaluation.every=7", "samples=None", "checkpoints.every=1000000")


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_run_goes_on_in_the_same_bits(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    file = write_recipe(tmp_path)
    child = start("train", file, "--run", "run", "--devices", 8, *ENDLESS, cwd=tmp_path)
    wait_for(child, r"^step [2-9]\d/")
    child.send_signal(signum)
    found, out, err = finish(child)
    assert (found, err) == (status, "")
    last = max(step for step, _ in written(tmp_path / "run", "train/loss"))
    assert f"stopped; step {last} is saved, run it again to go on" in out
    more = last + 3
    recipe = tiny(tmp_path, steps=more, samples=None)
    with Trainer(recipe, tmp_path / "run") as trainer:
        assert trainer.step == last
        assert f"changed since the last start: steps: 1000000 -> {more}" in trainer.session.notes[1]
        trainer.fit()
    with Trainer(recipe, tmp_path / "straight") as trainer:
        trainer.fit()
    assert prints(tmp_path / "run", more) == prints(tmp_path / "straight", more)
    losses = written(tmp_path / "run", "train/loss")
    assert losses == written(tmp_path / "straight", "train/loss")
    assert [step for step, _ in losses] == list(range(1, more + 1))


def test_two_signals_end_a_run_at_once_and_harm_nothing(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    command = ("train", file, "--run", "run", "--devices", 1, "samples=None", "evaluation=None")
    child = start(*command, "steps=1000000", "checkpoints.every=20", cwd=tmp_path)
    wait_for(child, r"^step 5\d/")
    child.send_signal(signal.SIGINT)
    time.sleep(0.05)  # two at the same moment are one
    child.send_signal(signal.SIGINT)
    found, out, err = finish(child)
    assert found == 130 and "Traceback" not in err
    status, out, err = call("ckpt", "verify", "run", cwd=tmp_path)
    assert status == 0 and "sound" in out
    child = start(*command, "steps=1000000", "checkpoints.every=20", cwd=tmp_path)
    seen = wait_for(child, r"^step \d+/")
    child.kill()
    finish(child)
    assert "going on from step" in seen


def test_a_run_stops_while_it_waits_for_its_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "corpus.txt")  # opening it waits for a writer that never comes
    file = write_recipe(tmp_path)
    child = start("train", file, "--run", "run", "--devices", 1, cwd=tmp_path)
    wait_for(child, "^reading the data")
    child.send_signal(signal.SIGTERM)
    found, out, err = finish(child)
    assert (found, err) == (75, "")
    assert out.endswith("stopped; nothing is lost, run it again to go on\n")
    assert not (tmp_path / "run").exists()


def test_a_run_stops_while_it_compiles(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    slow = {**environment(), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    child = start("train", file, "--run", "run", "--devices", 8, cwd=tmp_path, env=slow)
    wait_for(child, "^compiling the train step")
    child.send_signal(signal.SIGTERM)
    found, out, err = finish(child)
    assert (found, err) == (75, "")
    assert "step 1/" not in out and "nothing is lost" in out
    # Nothing was trained, so another recipe may have the folder.
    with Trainer(tiny(tmp_path, seed=1, steps=3), tmp_path / "run") as trainer:
        trainer.fit()


def test_an_evaluation_that_was_broken_off_is_made_after_the_restart(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "heldout=0.9, steps=3, samples=None")
    changes = ("evaluation.every=1", "evaluation.batches=None")
    child = start("train", file, "--run", "run", "--devices", 1, *changes, cwd=tmp_path)
    wait_for(child, "^evaluating")
    child.send_signal(signal.SIGTERM)
    found, out, err = finish(child)
    assert (found, err) == (75, ""), err
    assert "step 1 is saved" in out and "held-out" not in out
    assert call("train", "run", "--devices", 1, cwd=tmp_path)[0] == 0
    assert [step for step, _ in written(tmp_path / "run", "heldout/loss")] == [1, 2, 3]
    assert [step for step, _ in written(tmp_path / "run", "train/loss")] == [1, 2, 3]


STUCK = """
import hashlib, os, signal, sys, time
from jscale.launch.interrupts import signals_end
from jscale.signals import Signals

with signals_end(), Signals():
    print("stuck", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # much of native code
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_native_code_does_not_outlive_two_signals(signum: signal.Signals, status: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_for(child, "stuck")
    child.send_signal(signum)
    time.sleep(0.2)  # two at the same moment are one
    child.send_signal(signum)
    found, _, err = finish(child)
    assert found == status and "ended at once" in err


SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass  # where the interpreter hears it
except BaseException:
    pass  # as libraries do that try what there is
"""
IMPORTS = """
from jscale.launch.interrupts import signals_end

with signals_end():
    import swallows
print("gone on")
"""


def test_a_signal_in_an_import_that_swallows_exceptions_ends_a_command(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    where = {**environment(), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=where, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "jscale: interrupted\n")


def test_a_signal_in_an_import_is_remembered_by_those_who_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swallows_too.py").write_text(SWALLOWS)
    monkeypatch.syspath_prepend(tmp_path)
    with Signals() as around, around.at_once():
        importlib.import_module("swallows_too")
        assert around.asked == signal.SIGINT
        inside = Signals()  # as of a trainer, in a command that heard it
        with pytest.raises(Stopped), inside, inside.at_once():
            raise AssertionError("stopped before")
