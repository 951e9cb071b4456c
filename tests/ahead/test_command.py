"""`jscale compile`: what it prints, its exit statuses, and the process that it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ahead.machines import need

from jscale.launch.cli import main


def call(capsys, *words):
    """The command in this process: its status, its output, its complaints."""
    status = main(["compile", *words])
    out, err = capsys.readouterr()
    return status, out, err


def alone(*words, **environment):
    """Python as a user starts it: a process in which nothing is set and JAX has not started."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TPU_"))}
    return subprocess.run(
        [sys.executable, *words],
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_machine_its_mesh_a_table_and_a_verdict(capsys):
    need("v5e-8")
    status, out, err = call(capsys, "tiny", "--on", "v5e-8", "--mesh", "data=2, fsdp=4")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "machine: v5e-8: 8 v5e chip(s), 2x4"
    assert lines[1] == "mesh: data=2 fsdp=4 (named by --mesh)"
    names = [line.split("  ")[0] for line in lines[2:] if line]
    assert names[:3] == ["on each device", "parameters", "optimizer"] and "in all" in names
    assert lines[-1].startswith("fits: ") and lines[-1].endswith("of 15.8 GiB, less than 1%")
    assert err.startswith("compiling the train step of tiny for v5e-8 ...")


def test_what_does_not_fit_has_a_status_of_its_own(capsys):
    need("v5e-4")
    wide = ("tiny", "model.vocab=4194304", "model.dim=1024")
    status, out, _ = call(capsys, *wide, "--on", "v5e-4")
    assert status == 73
    assert "does not fit: Ran out of memory on HBM" in out and "data.batch" in out
    assert "parameters" in out and "temporaries  " not in out


def test_as_json(capsys):
    status, out, _ = call(capsys, "tiny", "--on", "cpu:8", "--json")
    found = json.loads(out)
    assert status == 0 and found["fits"] is None and found["refusal"] is None
    assert found["machine"]["devices"] == 8 and found["mesh"]["fsdp"] == 8
    assert found["needed"] == found["memory"]["total"] > sum(found["state"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--on", "v5p-63"], "the nearest sizes are v5p-32 and v5p-64"),
        (["tiny", "--on", "hal9000"], "there is no machine 'hal9000'"),
        (["tiny", "--on", "cpu:8", "--mesh", "fdsp=8"], "no axis 'fdsp'; did you mean 'fsdp'?"),
        (["tiny", "--on", "cpu:8", "--mesh", "fsdp"], "'fsdp' is not of the form fsdp=8"),
        (["tiny", "--on", "cpu:8", "--mesh", "fsdp=2,fsdp=4"], "'fsdp' is named twice"),
        (["tiny", "--on", "cpu:8", "--mesh", "fsdp=0"], "must be at least 1"),
        (["tiny", "--on", "cpu:8", "--mesh", "fsdp=4"], "has 4 device(s), and cpu:8 has 8"),
        (["tiny", "--on", "cpu:8", "data.batch=6", "--mesh", "fsdp=8"], "do not divide over"),
        (["tiny", "--on"], "expected one argument"),
        (["tinny"], "did you mean"),
    ],
)
def test_mistakes_are_one_sentence(capsys, words, said):
    status, out, err = call(capsys, *words)
    assert (status, out) == (64, "")
    (complaint,) = [line for line in err.splitlines() if "compiling" not in line]
    assert complaint.startswith("jscale: error: ") and said in complaint


@pytest.mark.parametrize("platforms", [None, "cuda", "no such thing"])
def test_whatever_jax_is_set_to_the_machine_is_compiled_for_and_nothing_else_is_said(platforms):
    need("v5e-8")
    set_to = {} if platforms is None else {"JAX_PLATFORMS": platforms}
    done = alone("-m", "jscale.launch.cli", "compile", "tiny", "--on", "v5e-8", **set_to)
    assert done.returncode == 0, done.stderr
    assert "fits: " in done.stdout
    assert all(line.startswith("compiling") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize(
    ("signum", "status", "said"),
    [(signal.SIGINT, 130, "jscale: interrupted\n"), (signal.SIGTERM, 75, "jscale: terminated\n")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_ends_it_at_once_and_libtpu_says_nothing(signum, status, said):
    need("v5e-8")
    words = ("-m", "jscale.launch.cli", "compile", "llama_8b", "--on", "v5e-256")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, *words], **pipes)  # it would take minutes
    assert child.stderr is not None and "compiling" in child.stderr.readline()
    while "libtpu" not in Path(f"/proc/{child.pid}/maps").read_text():
        time.sleep(0.05)
    child.send_signal(signum)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (status, "")
    assert err.endswith(said) and len(err.splitlines()) <= 2, err


def test_both_compilers_in_one_process_after_jax_has_started_without_them():
    need("v5e-8")
    need("h100:8")
    program = (
        "import jax, logging\nlogging.disable()\njax.devices()\n"
        "from jscale.mesh.target import target\n"
        "print(*(target(n).devices()[-1].device_kind for n in ('h100:8x2', 'v5e-8')), sep=', ')"
    )
    done = alone("-c", program)
    assert done.stdout == "NVIDIA H100, TPU v5 lite\n", done.stderr


def test_compilers_without_devices_leave_other_commands_quiet():
    """With the extra installed JAX would try them, and fill the screen with why it cannot."""
    need("v5e-8")
    need("h100:8")
    program = "from jscale.mesh.devices import devices\nprint(devices()[0].platform)"
    done = alone("-c", program)
    assert (done.stdout, done.stderr) == ("cpu\n", "")
