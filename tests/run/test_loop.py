"""The trainer as a plain loop: left and entered again, nothing is lost."""

from dataclasses import replace
from pathlib import Path

from run.tiny import tiny, written

from jscale import Trainer
from jscale.optim import AdamW, Averaged, ScheduleFree


def test_a_loop_left_by_break_has_saved_its_step(tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path), tmp_path / "run") as trainer:
        for step, _ in trainer:
            if step == 7:
                break
    with Trainer(tiny(tmp_path), tmp_path / "run") as trainer:
        assert trainer.step == 7
        steps = [step for step, _ in trainer]
    assert steps[0] == 8 and steps[-1] == trainer.recipe.steps


def test_the_last_step_is_always_written(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    recipe = replace(recipe, steps=7, logging=replace(recipe.logging, every=100))
    with Trainer(recipe, tmp_path / "run") as trainer:
        summary = trainer.fit()
    losses = dict(written(tmp_path / "run", "train/loss"))
    assert sorted(losses) == [1, 7] and summary["values"]["train/loss"] == losses[7]


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    found = []
    for evaluation in (tiny(tmp_path).evaluation, None):
        recipe = replace(tiny(tmp_path), evaluation=evaluation, samples=None)
        folder = tmp_path / ("with" if evaluation else "without")
        with Trainer(recipe, folder) as trainer:
            trainer.fit()
        found.append(dict(written(folder, "train/loss")))
    assert found[0] == found[1]


def test_averages_are_evaluated_in_place_of_the_weights(tmp_path: Path) -> None:
    import jax

    for name, optimizer in {
        "averaged": Averaged(of=AdamW(peak=1e-2), decay=0.9),
        "free": ScheduleFree(peak=1e-2),
    }.items():
        recipe = replace(tiny(tmp_path), optimizer=optimizer)
        with Trainer(recipe, tmp_path / name) as trainer:
            trainer.fit()
            pairs = zip(
                jax.tree.leaves(trainer.state.params),
                jax.tree.leaves(trainer.evaluation_params),
                strict=True,
            )
            assert any(bool((a != b).any()) for a, b in pairs), name
            assert trainer.evaluate(2)["loss"] > 0
