"""The smallest run that has everything: a Llama of 35 thousand weights on forty kilobytes."""

import argparse
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jscale.checkpoint import Checkpoints, steps
from jscale.data import Bytes, TextData, TextFiles
from jscale.mesh.compat import setting
from jscale.metrics import Logging, read_lines
from jscale.models import Llama
from jscale.optim import AdamW, Constant
from jscale.recipe import Evaluation, Recipe, Samples
from jscale.run.trainer import Trainer

TESTS = Path(__file__).parents[1]
TEXT = Path(argparse.__file__).read_text()[:40_000]
MODEL = Llama(vocab=260, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none")


def tiny(folder: Path, **changes: Any) -> Recipe:
    """The recipe, on a text that is written into `folder` unless there is one."""
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        corpus.write_text(TEXT)
    recipe = Recipe(
        name="tiny",
        model=MODEL,
        data=TextData(
            source=TextFiles((str(corpus),), separator="\n\n"),
            tokenizer=Bytes(),
            length=32,
            batch=8,
            heldout=0.1,
            cache=str(folder / "cache"),
        ),
        optimizer=AdamW(peak=1e-2, schedule=Constant(warmup=2)),
        steps=20,
        checkpoints=Checkpoints(every=5, keep=99),
        evaluation=Evaluation(every=10, batches=2),
        samples=Samples(prompts=("def ",), every=10, length=8),
        logging=Logging(every=1),
    )
    data = {key: changes.pop(key) for key in list(changes) if hasattr(recipe.data, key)}
    return replace(recipe, data=replace(recipe.data, **data), **changes)


def write_recipe(folder: Path, changes: str = "") -> Path:
    """A recipe file of it, with `changes` as keywords of `tiny`."""
    path = folder / "tiny_recipe.py"
    path.write_text(
        "from jscale.data import *\nfrom jscale.mesh import MeshShape\nfrom run.tiny import *\n\n\n"
        f"def recipe():\n    return tiny(Path({str(folder)!r}), {changes})\n"
    )
    return path


def environment() -> dict[str, str]:
    """Of a child process: it finds the tests, and the programs that they have compiled."""
    cache = str(setting("jax_compilation_cache_dir"))
    return {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "PYTHONSAFEPATH": "1",  # as the installed command: nothing is imported from where it runs
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PLATFORMS": "cpu",
    }


def start(*command: object, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    """A child process running `python -m jscale.launch.cli` with these words."""
    words = [sys.executable, "-m", "jscale.launch.cli", *map(str, command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=cwd, **{"env": environment(), **pipes, **more})


def finish(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The status, the output and the complaints of a child."""
    try:
        out, err = child.communicate(timeout=240)
    finally:
        child.kill()
    return child.returncode, out, err


def call(*command: object, cwd: Path, **more: Any) -> tuple[int, str, str]:
    return finish(start(*command, cwd=cwd, **more))


def wait_for(child: subprocess.Popen[str], pattern: str) -> str:
    """Read the child's output up to the first line in which the pattern is found."""
    assert child.stdout is not None
    seen = ""
    for line in child.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"no {pattern!r} in: {seen}\n{finish(child)}")


def prints(folder: Path, step: int) -> dict[str, str]:
    """The fingerprint of every array of a run's checkpoint, by name."""
    arrays = steps.read(folder / "checkpoints", step).arrays
    return {name: array.fingerprint for name, array in arrays.items()}


def written(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a number in metrics.jsonl, in the order of the file."""
    lines = read_lines(folder / "metrics.jsonl")
    return [(line.step, line.values[name]) for line in lines if name in line.values]


def train(recipe: Recipe, folder: Path) -> list[str]:
    """Train it to its end; what was noted when it was opened."""
    with Trainer(recipe, folder) as trainer:
        trainer.fit()
        return trainer.session.notes


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
