"""The folder of a run: one run at a time, nothing harmed, what may change between starts."""

import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run.tiny import (
    MODEL,
    call,
    contents,
    environment,
    finish,
    prints,
    start,
    tiny,
    train,
    wait_for,
    write_recipe,
    written,
)

from jscale.checkpoint import Checkpoints, steps
from jscale.errors import CheckpointError, ConfigError, DataError, UserError
from jscale.launch.cli import main
from jscale.recipe import Recipe
from jscale.run.trainer import Trainer


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    words = ("train", file, "--run", "run", "--devices", 1, "samples=None", "evaluation=None")
    first = start(*words, "steps=1000000", cwd=tmp_path)
    wait_for(first, r"^step 2\d/")
    status, out, err = call(*words, cwd=tmp_path)
    assert (status, err.count("\n")) == (66, 1)
    assert err.startswith(f"jscale: error: run is in use by process {first.pid} on ")
    wait_for(first, r"^step \d+/")
    first.terminate()
    assert finish(first)[0] == 75
    losses = [step for step, _ in written(tmp_path / "run", "train/loss")]
    assert losses == list(range(1, losses[-1] + 1))


def test_a_finished_run_that_is_started_again_says_so_and_trains_nothing(
    again: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(again)
    file = write_recipe(again, "steps=10")
    before = contents(again / "run" / "checkpoints"), (again / "run/metrics.jsonl").read_bytes()
    summary = json.loads((again / "run/summary.json").read_text())
    assert main(["train", str(file), "--run", "run"]) == 0
    out = capsys.readouterr().out
    assert "run is at step 10 of 10. Train longer with steps=..." in out
    assert f"loss {summary['values']['train/loss']:,.4g}" in out and "compiling" not in out
    assert "recipes copy" not in out  # it is a recipe of the user's own
    after = contents(again / "run" / "checkpoints"), (again / "run/metrics.jsonl").read_bytes()
    assert after == before
    assert json.loads((again / "run/summary.json").read_text()) == summary


def test_a_run_goes_on_from_its_folder_alone_and_trains_longer(
    again: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (again / "elsewhere").mkdir()
    monkeypatch.chdir(again / "elsewhere")
    assert main(["train", "../run", "steps=12", "logging.every=2"]) == 0
    out = capsys.readouterr().out
    assert "changed since the last start: steps: 10 -> 12; logging.every: 1 -> 2" in out
    assert "going on from step 10" in out and list(Path.cwd().iterdir()) == []
    assert [step for step, _ in written(again / "run", "train/loss")] == [*range(1, 11), 12]


def larger(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(MODEL, layers=3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: larger(r), r"\(model.layers: 2 -> 3\)"),
        (lambda r: replace(r, seed=1), r"\(seed: 0 -> 1\)"),
        (lambda r: replace(r, optimizer=replace(r.optimizer, peak=1.0)), "peak: 0.01 -> 1"),
        (lambda r: replace(r, data=replace(r.data, batch=16)), r"\(data.batch: 8 -> 16\)"),
    ],
    ids=["model", "seed", "rate", "batch"],
)
def test_another_recipe_is_refused_with_the_difference(
    again: Path, change: Callable[[Recipe], Recipe], said: str
) -> None:
    before = contents(again)
    with pytest.raises(ConfigError, match=f"holds a run of another recipe .*{said}"):
        Trainer(change(tiny(again, steps=10)), again / "run")
    assert contents(again) == before


def test_data_that_changed_are_refused_and_data_that_moved_are_not(again: Path) -> None:
    text = (again / "corpus.txt").read_text()
    (again / "corpus.txt").write_text(text.replace("parser", "passer"))
    before = contents(again / "run")
    with pytest.raises(DataError, match="the training data are not those"):
        Trainer(tiny(again, steps=11), again / "run")
    assert contents(again / "run") == before
    moved = again / "moved"
    moved.mkdir()
    (moved / "corpus.txt").write_text(text)
    notes = train(tiny(moved, steps=11), again / "run")
    assert "going on from step 10" in notes


def damage(folder: Path, step: int) -> None:
    largest = max((folder / str(step)).rglob("*/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_step_is_named_and_set_aside_and_the_one_before_is_used(again: Path) -> None:
    wanted, run = prints(again / "run", 10), again / "run"
    losses, samples = written(run, "train/loss"), (run / "samples.txt").read_text()
    damage(run / "checkpoints", 10)
    notes = train(tiny(again, steps=10), run)
    said = next(note for note in notes if "is damaged" in note)
    assert said.startswith("step 10 is damaged (") and said.endswith("checkpoints/damaged/10")
    assert "going on from step 5" in notes
    assert prints(run, 10) == wanted  # and the steps that were lost came out the same
    assert written(run, "train/loss") == losses
    assert (run / "samples.txt").read_text() == samples


def test_a_run_of_which_every_step_is_damaged_is_refused_twice(again: Path) -> None:
    checkpoints = again / "run" / "checkpoints"
    for step in steps.folders(checkpoints):
        damage(checkpoints, step)
    for said in ("no step of .* is sound: step 10: .*; step 5: ", "holds no sound checkpoint"):
        with pytest.raises(CheckpointError, match=said):
            Trainer(tiny(again, steps=10), again / "run")
    assert (again / "run/metrics.jsonl").stat().st_size > 0


def test_a_recipe_file_that_is_no_json_is_said_and_can_be_replaced(again: Path) -> None:
    (again / "run/recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match="recipe.json cannot be read .*; remove it"):
        Trainer(tiny(again, steps=10), again / "run")
    (again / "run/recipe.json").unlink()
    with Trainer(tiny(again, steps=10), again / "run") as trainer:
        assert trainer.step == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_the_data_are_read(
    tmp_path: Path,
) -> None:
    recipe = tiny(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be made: .*closed is not a folder that can"):
        Trainer(recipe, tmp_path / "closed" / "run")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["corpus.txt", "corpus.txt/run", "/proc/run"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path, place: str) -> None:
    recipe = tiny(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be (made|written)"):
        Trainer(recipe, tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["corpus.txt"],
        ["cache", "corpus.txt"],
    )


FULL = {
    "the recipe": (4_000, "", "cannot be written: File too large"),
    "the numbers": (60_000, "", "cannot be written: File too large"),
    "a checkpoint": (60_000, "logging=Logging(writers=())", "step 5 could not be saved in "),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_ends_in_one_sentence(ended: Path, tmp_path: Path, what: str) -> None:
    """A limit on the size of a file has the effect of a full disk."""
    limit, changes, said = FULL[what]
    file = write_recipe(ended, f"steps=2000, evaluation=None, samples=None, {changes}")
    every = 5 if changes else 3000
    words = ("train", file, "--run", tmp_path / "run", "--devices", 1, f"checkpoints.every={every}")
    # Without the cache of programs, which it would leave broken for all who share it.
    child = start(*words, cwd=ended, env=environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"})
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (limit, limit))
    status, out, err = finish(child)
    assert (status, err.count("\n")) == (66, 1), err
    assert err.startswith("jscale: error: ") and said in err


def test_saves_by_the_clock(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, steps=3, checkpoints=Checkpoints(every=1000, minutes=1e-9, keep=9))
    train(recipe, tmp_path / "run")
    assert steps.folders(tmp_path / "run" / "checkpoints") == [1, 2, 3]


def test_a_start_that_failed_does_not_block_the_next(tmp_path: Path) -> None:
    recipe, run = tiny(tmp_path, steps=3), tmp_path / "run"
    (tmp_path / "corpus.txt").write_text("\n \n")
    with pytest.raises(UserError, match="the corpus has no documents"):
        Trainer(recipe, run)
    assert not run.exists()
    (tmp_path / "corpus.txt").unlink()
    # A folder that was made and in which nothing was trained takes any recipe.
    with Trainer(larger(tiny(tmp_path, steps=3)), run):
        pass
    train(tiny(tmp_path, steps=3), run)
    assert [step for step, _ in written(run, "train/loss")] == [1, 2, 3]
