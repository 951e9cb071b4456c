"""Measured during a run and afterwards, in Python and by the command: the same numbers."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from run.tiny import tiny, written

from jscale.config.data import to_data
from jscale.data import Tokenizer
from jscale.evaluation import GreedyMatch, MultipleChoice
from jscale.evaluation.greedy_match import continue_greedily
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import Result
from jscale.launch.cli import main
from jscale.launch.commands.evaluate import check_writable, write_predictions
from jscale.metrics import read_lines
from jscale.recipe import Evaluation, Recipe
from jscale.run.events import Evaluated, Event, Examined, Noted
from jscale.run.restored import open_run
from jscale.run.trainer import Trainer
from jscale.score import Told, tell_nobody

CHOSEN = [{"prompt": "import ", "choices": ["argparse", "zzzz"], "answer": 0}] * 3
OPEN = [{"prompt": "def ", "answer": "x"}]


def measured(folder: Path) -> Recipe:
    for name, questions in (("words", CHOSEN), ("names", OPEN)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, questions)))
    tasks = (MultipleChoice("words.jsonl"), GreedyMatch("names.jsonl", tokens=4))
    evaluation = Evaluation(every=4, batches=2, tasks=tasks)
    return tiny(folder, steps=6, samples=None, evaluation=evaluation)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A run of six steps, measured at the fourth and at the end, and what it told."""
    folder, events = tmp_path_factory.mktemp("measured"), list[Event]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Trainer(measured(folder), folder / "run", [events.append]) as trainer:
            trainer.fit()
    return folder, events


def test_a_run_tells_and_writes_its_numbers(ran: tuple[Path, list[Event]]) -> None:
    folder, events = ran
    told = {(e.step, e.task): e.values for e in events if isinstance(e, Examined)}
    assert list(told) == [(4, "words"), (4, "names"), (6, "words"), (6, "names")]
    assert told[6, "words"]["count"] == 3.0 and told[6, "names"].keys() == {"acc", "count"}
    for (step, task), values in told.items():
        for name, value in values.items():
            assert dict(written(folder / "run", f"task/{task}/{name}"))[step] == value
    heldout = [e.values for e in events if isinstance(e, Evaluated)]
    for values in heldout:
        assert values["perplexity"] == math.exp(values["nll"])
        bits = values["nll"] * values["tokens"] / math.log(2) / values["bytes"]
        assert values["bits_per_byte"] == pytest.approx(bits)
        assert values["bytes"] < values["tokens"]  # each document's end is a token
    assert [v for _, v in written(folder / "run", "heldout/bits_per_byte")] == [
        values["bits_per_byte"] for values in heldout
    ]
    summary = json.loads((folder / "run/summary.json").read_text())["values"]
    assert summary["task/words/acc"] == told[6, "words"]["acc"]
    said = [e.text for e in events if isinstance(e, Noted)]
    assert any(text.startswith("step 6: words accuracy ") for text in said)
    assert not any("bits per byte" in text for text in said)


def test_tensorboard_has_them(ran: tuple[Path, list[Event]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(ran[0] / "run" / "events"))
    board.Reload()
    for name in ("heldout/bits_per_byte", "heldout/perplexity", "task/words/acc_norm"):
        found = [(e.step, e.value) for e in board.Scalars(name)]
        assert found == [(s, pytest.approx(v)) for s, v in written(ran[0] / "run", name)]


def test_afterwards_the_numbers_are_those_of_the_run(
    ran: tuple[Path, list[Event]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = ran
    last = {k: v for x in read_lines(folder / "run/metrics.jsonl") for k, v in x.values.items()}
    run = open_run(folder / "run")
    monkeypatch.chdir(tmp_path)  # the run knows where its data lie, not where its reader is
    found = run.evaluate(batches=2)
    assert {f"heldout/{k}": v for k, v in found.items()}.items() <= last.items()
    result = run.examine(MultipleChoice(str(folder / "words.jsonl")))
    assert {f"task/words/{k}": v for k, v in result.values.items()}.items() <= last.items()
    assert [p["answer"] for p in result.predictions] == [0, 0, 0]


@pytest.fixture
def call(
    ran: tuple[Path, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(ran[0])
        status = main(["evaluate", *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_command_prints_them_as_json(call: Callable[..., Any], ran: tuple[Path, Any]) -> None:
    status, out, err = call("run", "--json", "--batches", "2")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["step"] == 6 and found["tasks"].keys() == {"words", "names"}
    for task, values in found["tasks"].items():
        for name, value in values.items():
            assert written(ran[0] / "run", f"task/{task}/{name}")[-1] == (6, value)
    assert written(ran[0] / "run", "heldout/perplexity")[-1] == (6, found["perplexity"])


def test_the_command_asks_more_and_writes_what_was_predicted(
    call: Callable[..., Any], ran: tuple[Path, Any], tmp_path: Path
) -> None:
    out_file = tmp_path / "p.jsonl"
    more = 'MultipleChoice("words.jsonl", name="again", between=" ")'
    asked = ("--task", more, "--task", "multiple_choice=words.jsonl")
    status, out, err = call("run", "--no-heldout", *asked, "--out", str(out_file))
    assert status == 0 and "the recipe's own task 'words' gives way" in err
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["step"] == "6" and rows["task/again/count"] == "3"
    assert " ± " in rows["task/again/acc"] and "loss" not in rows
    predictions = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert [p["task"] for p in predictions] == ["words"] * 3 + ["names"] + ["again"] * 3
    assert predictions[1]["where"] == "words.jsonl:2" and len(predictions[1]["logprobs"]) == 2
    right = sum(p["predicted"] == p["answer"] for p in predictions if p["task"] == "again")
    assert rows["task/again/acc"].startswith(f"{right / 3:.4f}")


BAD = {
    ("--task", "multiple_chioce=a"): (64, "did you mean 'multiple_choice'?"),
    ("--task", "words.jsonl"): (64, "is not KIND=FILE; choose from greedy_match"),
    ("--task", "GreedyMatch('a.jsonl', token=3)"): (64, "did you mean 'tokens'?"),
    ("--task", "multiple_choice=none.jsonl"): (65, "cannot read none.jsonl: No such file"),
    ("--task", "greedy_match=words.jsonl"): (65, "words.jsonl:1: answer must be text, found int"),
    ("--task", "multiple_choice=names.jsonl"): (65, "names.jsonl:1: no field 'choices'"),
    ("--batches", "0"): (64, "evaluation needs at least 1 batch"),
    ("--out", "nowhere/p.jsonl"): (64, "nowhere/p.jsonl cannot be written: No such file"),
    ("--out", "cache"): (64, "--out cache cannot be written: Is a directory"),
    ("--out", "/dev/full", "--batches", "1"): (64, "/dev/full cannot be written: No space left"),
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_asked(call: Callable[..., Any], words: tuple[str, ...]) -> None:
    status, said = BAD[words]
    found, out, err = call("run", *words)
    # A disk that is full at the end does not lose the numbers: they are shown before.
    shown = "/dev/full" in words
    assert (found, bool(out), said in err, err.count("\n")) == (status, shown, True, 1), err


def test_predictions_are_json_whatever_number_is_in_them(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    out.write_text("kept until there is something new")
    check_writable(out)
    assert out.read_text().startswith("kept")
    check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    odd = {"predicted": [(math.nan, False), (-math.inf, True)], "path": tmp_path}
    write_predictions(out, {"own": Result({}, [odd])})
    found = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["predicted"] == [["NaN", False], ["-Infinity", True]]
    assert found["task"] == "own" and found["path"] == str(tmp_path)


def test_bad_questions_are_found_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = measured(tmp_path)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write('\n{"prompt": "a"}')
    with pytest.raises(ValueError, match="words.jsonl:4: no field 'choices'"):
        Trainer(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tasks_run_where_nothing_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = measured(tmp_path)
    recipe = replace(recipe, data=replace(recipe.data, heldout=0.0), steps=4)
    with Trainer(recipe, tmp_path / "run") as trainer:
        trainer.fit()
    assert written(tmp_path / "run", "heldout/loss") == []
    assert [step for step, _ in written(tmp_path / "run", "task/words/acc")] == [4]
    assert main(["evaluate", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "the recipe holds nothing out" in err and json.loads(out).keys() == {"step", "tasks"}


@dataclass(frozen=True)
class Letters:
    """A task of a user's own: the share of letters among what the model writes."""

    letters: str = "abc"
    title: str = "letters"

    def open(self, tokenizer: Tokenizer, length: int) -> "Letters":
        return self

    def ask(self, subject: Subject, tell: Told = tell_nobody) -> Result:
        rows = [ids[:-1] for ids in subject.tokenizer.encode_documents(list(self.letters))]
        texts = continue_greedily(subject, rows, 4, tell)
        return Result(
            {"letters": float(sum(map(str.isalpha, "".join(text or "" for text in texts))))}, []
        )


def test_a_task_of_ones_own_does_all_that_ours_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = measured(tmp_path)
    evaluation = Evaluation(every=4, batches=1, tasks=(Letters(), MultipleChoice("words.jsonl")))
    with Trainer(replace(recipe, evaluation=evaluation, steps=4), tmp_path / "run") as trainer:
        trainer.fit()
        found = {task.title: trainer.examine(task).values for task in evaluation.tasks}
    assert found["letters"].keys() == {"letters"}
    for title, values in found.items():
        for name, value in values.items():
            assert written(tmp_path / "run", f"task/{title}/{name}") == [(4, value)]


def test_a_run_begun_before_a_field_was_known_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(tmp_path, steps=3, samples=None)
    with Trainer(recipe, tmp_path / "run") as trainer:
        trainer.fit()
    file = tmp_path / "run/recipe.json"
    data = json.loads(file.read_text())
    del data["evaluation"]["tasks"], data["data"]["shuffle"], data["loss"]["z_loss"]
    older = json.dumps(data)

    def begun_before() -> None:
        file.write_text(older)

    begun_before()
    notes = open_run(tmp_path / "run").notes
    assert len(notes) == 1 and notes[0].endswith(
        "recipe.json is of an earlier version and takes the default of:"
        " data.shuffle=True, loss.z_loss=0.0, evaluation.tasks=()"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run", "steps=4"]) == 0
    out, err = capsys.readouterr()
    assert "of an earlier version" in err and "going on from step 3" in out
    assert json.loads(file.read_text())["data"]["shuffle"] is True
    begun_before()
    other = replace(recipe, steps=5, data=replace(recipe.data, shuffle=False))
    with pytest.raises(ValueError, match="data.shuffle: True -> False"):
        Trainer(other, tmp_path / "run")
    begun_before()
    with Trainer(replace(recipe, steps=5), tmp_path / "run") as trainer:
        assert trainer.step == 4
    assert json.loads(file.read_text()) == json.loads(json.dumps(to_data(trainer.recipe)))
