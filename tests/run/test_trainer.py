"""The trainer in a program of one's own: a plain `for`, its events, its files."""

import json
import signal
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run.tiny import prints, tiny, train, written

from jscale.compiled import Compilation
from jscale.errors import NumericError
from jscale.evaluation.heldout import heldout_means
from jscale.guard import Guard, Spike
from jscale.launch.cli import main
from jscale.metrics import Logging, read_lines
from jscale.models import Llama
from jscale.optim import AdamW, Averaged, Constant, ScheduleFree
from jscale.recipe import Evaluation
from jscale.run.events import Evaluated, Event, Noted, Sampled, Saved, Stepped
from jscale.run.trainer import Trainer


def test_a_loop_that_is_left_goes_on_where_it_was(ended: Path, tmp_path: Path) -> None:
    seen = []
    with Trainer(tiny(tmp_path, steps=10), tmp_path / "run") as trainer:
        for stop in (3, 5, 10):  # 5 is saved, 10 evaluated
            for step, metrics in trainer:
                seen.append((step, float(metrics["loss"])))
                if step == stop:
                    break
        assert not list(trainer)
    assert seen == written(ended / "run", "train/loss")
    assert written(tmp_path / "run", "train/loss") == seen
    assert written(tmp_path / "run", "heldout/loss") == written(ended / "run", "heldout/loss")
    assert prints(tmp_path / "run", 10) == prints(ended / "run", 10)
    assert prints(tmp_path / "run", 5) == prints(ended / "run", 5)


def test_a_loop_left_for_good_is_saved_and_what_was_due_is_made_up_for(
    ended: Path, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path, steps=10)
    for _ in range(2):
        with Trainer(recipe, tmp_path / "run") as trainer:
            for step, _metrics in trainer:
                if step in (5, 10):
                    break
    assert written(tmp_path / "run", "heldout/loss") == []  # left before it was made
    with Trainer(recipe, tmp_path / "run") as trainer:
        assert not list(trainer)
    assert written(tmp_path / "run", "heldout/loss") == written(ended / "run", "heldout/loss")
    assert written(tmp_path / "run", "train/loss") == written(ended / "run", "train/loss")
    assert (tmp_path / "run/samples.txt").read_text() == (ended / "run/samples.txt").read_text()


def test_callbacks_see_the_events_in_their_order(tmp_path: Path) -> None:
    events: list[Event] = []
    with Trainer(tiny(tmp_path, steps=10), tmp_path / "run", [events.append]) as trainer:
        summary = trainer.fit()
    known = [event for event in events if not isinstance(event, Noted)]
    assert isinstance(known[0], Compilation) and known[0].changed == ()
    order = [(type(e), e.step) for e in known if not isinstance(e, Compilation)]
    steps = [(Stepped, step) for step in range(1, 11)]
    last = [(Evaluated, 10), (Sampled, 10), (Saved, 10)]
    assert order == [*steps[:5], (Saved, 5), *steps[5:], *last]
    losses = [event.values["loss"] for event in events if isinstance(event, Stepped)]
    assert summary["step"] == 10 and summary["values"]["train/loss"] == losses[-1]


def test_the_files_hold_what_was_told(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list[Event] = []
    with Trainer(tiny(tmp_path, steps=10), tmp_path / "run", [told.append]) as trainer:
        for step, _ in trainer:
            if step == 7:
                break
    with Trainer(tiny(tmp_path, steps=10), tmp_path / "run", [told.append]) as trainer:
        trainer.fit()
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if line.values]
    groups = {Stepped: "train", Evaluated: "heldout"}
    wanted = [
        (e.step, {f"{groups[type(e)]}/{name}": value for name, value in e.values.items()})
        for e in told
        if isinstance(e, Stepped | Evaluated)
    ]
    assert [(line.step, line.values) for line in lines] == wanted
    board = EventAccumulator(str(tmp_path / "run" / "events"))
    board.Reload()
    for name in ("train/loss", "heldout/loss", "train/rate"):
        points = [(e.step, np.float32(e.value)) for e in board.Scalars(name)]
        assert points == [(s, np.float32(v[name])) for s, v in wanted if name in v]


@pytest.mark.parametrize(
    "optimizer",
    [Averaged(AdamW(peak=1e-2, schedule=Constant()), decay=0.9), ScheduleFree(peak=1e-2)],
    ids=["averaged", "schedule-free"],
)
def test_an_optimizer_evaluates_with_its_own_parameters(
    tmp_path: Path, optimizer: Averaged | ScheduleFree
) -> None:
    recipe = tiny(tmp_path, steps=10, optimizer=optimizer, samples=None)
    with Trainer(recipe, tmp_path / "run") as trainer:
        trainer.fit()
        state, corpus = trainer.state, trainer.session.corpus
        own = optimizer.evaluation_params(state.params, state.optimizer)
        assert trainer.evaluate(2) == heldout_means(trainer.task, own, corpus, 2)
        assert trainer.evaluate(2) != heldout_means(trainer.task, state.params, corpus, 2)
        assert written(tmp_path / "run", "heldout/loss") == [(10, trainer.evaluate(2)["loss"])]


def test_evaluation_and_samples_do_not_change_training(ended: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path, steps=10, evaluation=None, samples=None), tmp_path / "without")
    assert prints(tmp_path / "without", 10) == prints(ended / "run", 10)
    train(tiny(tmp_path, steps=10, evaluation=Evaluation(every=1, batches=1)), tmp_path / "often")
    assert prints(tmp_path / "often", 10) == prints(ended / "run", 10)


def test_prediction_and_generation_from_the_trainer(again: Path) -> None:
    with Trainer(tiny(again, steps=10), again / "run") as trainer:
        short, long = trainer.predict(["def f", "import argparse"])
        assert (short.shape, long.shape) == ((6,), (16,))  # bos and eos around the bytes
        assert (short < 0).all() and (long < 0).all()
        np.testing.assert_allclose(trainer.predict(["def f"])[0], short, rtol=1e-5)
        assert trainer.generate(["def "], seed=1) == trainer.generate(["def "], seed=1)
        assert trainer.generate(["def "], seed=1) != trainer.generate(["def "], seed=2)


def test_a_run_that_diverges_stops_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from run.tiny import write_recipe

    monkeypatch.chdir(tmp_path)
    file = write_recipe(
        tmp_path, "optimizer=AdamW(peak=1e30, schedule=Constant()), samples=None, steps=100"
    )
    assert main(["train", str(file), "guard.abort_after=3", "checkpoints.every=2"]) == 72
    out, err = capsys.readouterr()
    assert err.startswith("jscale: error: the loss or its gradient was not finite for 3 steps")
    assert err.count("\n") == 1 and out.count("was not finite and was left out") == 3
    skipped = written(tmp_path / "runs/tiny", "train/skipped")
    assert [count for _, count in skipped][-3:] == [1, 2, 3]


def test_a_summary_is_json_whatever_the_numbers(tmp_path: Path) -> None:
    optimizer = AdamW(peak=1e30, schedule=Constant())
    recipe = tiny(tmp_path, steps=4, optimizer=optimizer, samples=None, evaluation=None)
    train(recipe, tmp_path / "run")
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    text = (tmp_path / "run/summary.json").read_text()
    assert json.loads(text, parse_constant=refuse)["values"]["train/grad_norm"] == "NaN"
    with Trainer(recipe, tmp_path / "run") as trainer:
        assert np.isnan(trainer.summary()["values"]["train/grad_norm"])


def test_what_was_left_out_before_a_restart_is_not_told_again(tmp_path: Path) -> None:
    optimizer = AdamW(peak=1e30, schedule=Constant())
    recipe = tiny(tmp_path, optimizer=optimizer, samples=None, evaluation=None, steps=100)
    notes: list[Event] = []
    with Trainer(recipe, tmp_path / "run") as trainer:
        for _ in trainer:
            if int(trainer.state.watch.skipped) == 2:
                break
    with pytest.raises(NumericError) as stopped:
        with Trainer(recipe, tmp_path / "run", [notes.append]) as trainer:
            trainer.fit()
    assert stopped.value.status == 72
    said = [note.text for note in notes if isinstance(note, Noted) and "left out" in note.text]
    assert len(said) == recipe.guard.abort_after - 2


def test_spikes_are_noted(tmp_path: Path) -> None:
    events: list[Event] = []
    guard = Guard(spike=Spike(sigmas=1e-3, window=2))
    recipe = tiny(tmp_path, steps=20, guard=guard, evaluation=None, samples=None)
    with Trainer(recipe, tmp_path / "run", [events.append]) as trainer:
        trainer.fit()
    noted = [e.text for e in events if isinstance(e, Noted) and "is a spike (loss " in e.text]
    assert len(noted) == written(tmp_path / "run", "train/spikes")[-1][1] > 0


def test_a_batch_of_another_shape_is_told_with_what_changed(tmp_path: Path) -> None:
    events: list[Event] = []
    recipe = tiny(tmp_path, steps=20, samples=None, evaluation=None)
    with Trainer(recipe, tmp_path / "run", [events.append]) as trainer:
        for step, _ in trainer:
            if step == 3:
                stream: Any = trainer.session.corpus.train
                batch = stream.global_batch(3)
                longer = {name: np.tile(x, (1, 2)) for name, x in batch.items()}
                where = trainer.task.layout.activation_sharding("batch", "length")
                trainer._program(trainer.state, jax.device_put(longer, where))
                break
        (said,) = [e.text for e in events if isinstance(e, Noted) and "compiled again" in e.text]
        assert "inputs: int32[8,32]" in said and "became int32[8,64]" in said
        trainer._saved = trainer.step  # the state has been given away


def test_the_last_step_has_no_time_to_go(tmp_path: Path) -> None:
    train(replace(tiny(tmp_path, steps=3), samples=None, evaluation=None), tmp_path / "run")
    assert [step for step, _ in written(tmp_path / "run", "train/eta_seconds")] == [1, 2]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "train/eta_seconds" not in summary["values"]


def test_the_last_step_is_written_whatever_the_rhythm(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, steps=7, logging=Logging(every=100), samples=None, evaluation=None)
    train(recipe, tmp_path / "run")
    assert [step for step, _ in written(tmp_path / "run", "train/loss")] == [1, 7]


def test_a_closed_trainer_trains_no_more(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path), tmp_path / "run")
    trainer.close()
    with Trainer(tiny(tmp_path), tmp_path / "run") as other:
        with pytest.raises(ValueError, match="this trainer is closed"):
            next(iter(trainer))
        assert other.step == 0


def test_trainers_stepped_together_give_the_signals_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    recipe = tiny(tmp_path, steps=3, evaluation=None, samples=None)
    with Trainer(recipe, tmp_path / "a") as a, Trainer(recipe, tmp_path / "b") as b:
        pairs = [(x.step, y.step) for x, y in zip(a, b, strict=True)]
    assert pairs == [(1, 1), (2, 2), (3, 3)]
    assert signal.getsignal(signal.SIGINT) is before


def test_one_text_where_several_are_taken_is_named(tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path), tmp_path / "run") as trainer:
        for call in (trainer.generate, trainer.predict):
            with pytest.raises(ValueError, match="give a list of texts"):
                call("def ")


@dataclass(frozen=True)
class Annotated(Llama):
    """A model whose config holds a mapping, and so has no hash."""

    notes: dict[str, int] = field(default_factory=lambda: {"a": 1})


def test_a_model_with_a_mapping_trains_and_samples(tmp_path: Path) -> None:
    base = tiny(tmp_path).model
    assert isinstance(base, Llama)
    model = Annotated(**{f.name: getattr(base, f.name) for f in fields(base)})
    with Trainer(tiny(tmp_path, model=model, steps=4), tmp_path / "run") as trainer:
        assert trainer.fit()["step"] == 4
    assert (tmp_path / "run" / "samples.txt").exists()
