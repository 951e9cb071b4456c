"""The choice that is likeliest by a plain call of the model is the one predicted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from close import LAYOUT, assert_close
from evaluation.subjects import by_hand, subject

from jscale.data import Bytes
from jscale.evaluation import MultipleChoice
from jscale.evaluation.task import Result
from jscale.mesh import MeshShape

QUESTIONS = [
    {"prompt": "p" * n, "choices": ["yes", "no", "perhaps " * (n % 5 + 1)], "answer": n % 3}
    for n in range(1, 40, 4)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "q.jsonl", QUESTIONS)


def write(path: Path, questions: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, questions)))
    return path


def ask(who: Any, file: Path, **more: Any) -> Result:
    return MultipleChoice(str(file), **more).open(who.tokenizer, who.length).ask(who)


def test_log_probabilities_are_those_of_a_plain_call(file: Path, tmp_path: Path) -> None:
    who = subject(tmp_path)
    result = ask(who, file)
    wanted = [
        [by_hand(who, str(q["prompt"]), choice).sum() for choice in q["choices"]] for q in QUESTIONS
    ]
    found = [p["logprobs"] for p in result.predictions]
    assert_close([np.array(x) for x in found], [np.array(x) for x in wanted], LAYOUT)
    sizes = [[len(c) for c in q["choices"]] for q in QUESTIONS]
    assert [p["tokens"] for p in result.predictions] == sizes
    answers = [q["answer"] for q in QUESTIONS]
    for name, over in (("acc", 1), ("acc_norm", sizes), ("acc_norm_tokens", sizes)):
        right = np.mean((np.array(wanted) / over).argmax(1) == answers)
        assert result.values[name] == pytest.approx(right)
        error = np.sqrt(right * (1 - right) / (len(answers) - 1))
        assert result.values[f"{name}_stderr"] == pytest.approx(error)
    assert result.values["count"] == len(QUESTIONS)


def test_a_question_is_answered_alike_whatever_is_asked_with_it(file: Path, tmp_path: Path) -> None:
    who = subject(tmp_path)
    together = {p["prompt"]: p["logprobs"] for p in ask(who, file).predictions}
    backwards = write(tmp_path / "b.jsonl", QUESTIONS[::-1])
    for other in (backwards, write(tmp_path / "one.jsonl", QUESTIONS[4:5])):
        for p in ask(who, other).predictions:
            assert p["logprobs"] == together[p["prompt"]]  # bit for bit
    few = subject(tmp_path, places=1)  # row by row
    for p in ask(few, file).predictions:
        np.testing.assert_allclose(p["logprobs"], together[p["prompt"]], rtol=LAYOUT)


def test_every_mesh_gives_the_same(file: Path, tmp_path: Path) -> None:
    wanted = ask(subject(tmp_path), file)
    for mesh in (MeshShape(fsdp=8), MeshShape(data=2, tensor=2, context=2)):
        found = ask(subject(tmp_path, mesh), file)
        for a, b in zip(found.predictions, wanted.predictions, strict=True):
            np.testing.assert_allclose(a["logprobs"], b["logprobs"], rtol=LAYOUT)


def test_lengths_decide_differently(tmp_path: Path) -> None:
    who = subject(tmp_path)
    long, short = "zz" * 20, "a"
    file = write(tmp_path / "q.jsonl", [{"prompt": "x", "choices": [long, short], "answer": 1}])
    result = ask(who, file)
    (p,) = result.predictions
    assert p["predicted"] == 1 and p["tokens"] == [40, 1]  # forty tokens cost more than one
    means = [p["logprobs"][0] / 40, p["logprobs"][1]]
    assert p["predicted_norm"] == p["predicted_norm_tokens"] == int(np.argmax(means))
    assert "acc_stderr" not in result.values  # of one question nothing is known


def test_a_model_that_knows_no_number_is_never_right(file: Path, tmp_path: Path) -> None:
    who = subject(tmp_path)
    broken = replace(who, params=jax.tree.map(lambda x: x * np.nan, who.params))
    result = ask(broken, file)
    assert result.values["acc"] == result.values["acc_norm"] == 0.0  # not the share of choice 0
    assert {p["predicted"] for p in result.predictions} == {None}
    assert json.dumps(result.predictions, allow_nan=False)


def test_examples_stand_before_every_prompt(tmp_path: Path) -> None:
    who = subject(tmp_path)
    examples = [{"prompt": "1+1", "choices": ["3", "2"], "answer": 1}]
    shots = write(tmp_path / "s.jsonl", examples)
    file = write(tmp_path / "q.jsonl", [{"prompt": "2+2", "choices": ["4", "5"], "answer": 0}])
    more = {"shots": str(shots), "between": "=", "after": "; "}
    (p,) = ask(who, file, **more).predictions
    for choice, found in zip(("4", "5"), p["logprobs"], strict=True):
        wanted = by_hand(who, "1+1=2; 2+2", f"={choice}").sum()
        assert found == pytest.approx(wanted, rel=LAYOUT)
    assert p["prompt"] == "2+2"


def test_the_numbers_are_named_after_the_file() -> None:
    assert MultipleChoice("a/b/sums.jsonl").title == "sums"
    assert MultipleChoice("a/b/sums.jsonl", name="more").title == "more"


def test_progress_counts_rows(file: Path, tmp_path: Path) -> None:
    who, told = subject(tmp_path), []
    questions = MultipleChoice(str(file)).open(Bytes().load(), 128)
    questions.ask(who, lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1] == (30, 30) and len(told) > 1
