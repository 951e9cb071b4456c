"""The benchmark of the step runs, and its page says what its results say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP, PAGE = ROOT / "benchmarks" / "step.py", ROOT / "docs" / "performance.md"


def test_the_page_is_written_from_the_results():
    write = runpy.run_path(str(STEP.parent / "page.py"))["write"]
    results = json.loads((STEP.parent / "results" / "step.json").read_text())
    assert PAGE.read_text() == write(results), "run python benchmarks/step.py --write-docs"
    assert str(ROOT) not in json.dumps(results), "results name no place on a machine"


@pytest.mark.slow
def test_a_quick_run_compares_values_and_keeps_nothing():
    kept = (STEP.parent / "results" / "step.json").read_bytes()
    words = [sys.executable, str(STEP), "--quick", "--steps", "2", "--jobs", "dense"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(done.stdout)["jobs"].values()
    assert job["loss_off"] < 1e-5 and job["gradient_off"] < 1e-4 and job["ratio"] > 0
    assert (STEP.parent / "results" / "step.json").read_bytes() == kept


@pytest.mark.slow
@pytest.mark.parametrize("job", ["fsdp", "deep", "loop"])
def test_quick_runs_of_the_other_jobs(job):
    words = [sys.executable, str(STEP), "--quick", "--steps", "2", "--jobs", job]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"][job]["ratio"] > 0
