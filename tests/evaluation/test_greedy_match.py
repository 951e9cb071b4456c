"""What is predicted is the likeliest continuation, cut at its end, letter by letter."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from evaluation.subjects import logits_after, subject

from jscale.evaluation import GreedyMatch
from jscale.evaluation.greedy_match import continue_greedily, cut
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import Result
from jscale.mesh import MeshShape

PROMPTS = ["a" * n for n in (1, 3, 15, 20, 33)] + ["zebra", "Übung"]


def write(path: Path, questions: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, questions)))
    return str(path)


def ask(who: Subject, file: str, **more: Any) -> Result:
    return GreedyMatch(file, **more).open(who.tokenizer, who.length).ask(who)


def by_hand(who: Subject, prompt: str, tokens: int) -> str:
    """Token by token, each from a plain call on all that stands before."""
    ids = who.tokenizer.encode_documents([prompt])[0][:-1]
    new: list[int] = []
    for _ in range(tokens):
        new.append(int(logits_after(who, ids + new)[-1].argmax()))
        if new[-1] == who.tokenizer.eos:
            break
    return who.tokenizer.decode(new)


def test_the_likeliest_continuation_is_right_and_any_other_wrong(tmp_path: Path) -> None:
    who = subject(tmp_path)
    texts = [by_hand(who, prompt, 6) for prompt in PROMPTS]
    answers: list[Any] = [f" {text}\n" for text in texts]  # white space around it does not matter
    answers[1] = [texts[1] + "x", texts[1]]
    answers[2] = texts[2] + "x"
    answers[3] = ["not this", "nor that"]
    questions = [{"prompt": p, "answer": a} for p, a in zip(PROMPTS, answers, strict=True)]
    result = ask(who, write(tmp_path / "g.jsonl", questions), tokens=6, stop=())
    assert [p["predicted"] for p in result.predictions] == [text.strip() for text in texts]
    right = [True, True, False, False, True, True, True]
    assert [p["right"] for p in result.predictions] == right
    assert result.values["acc"] == pytest.approx(5 / 7) and result.values["count"] == 7


def test_a_model_that_knows_no_number_is_never_right(tmp_path: Path) -> None:
    who = subject(tmp_path)
    broken = replace(who, params=jax.tree.map(lambda x: x * np.nan, who.params))
    zeros = who.tokenizer.decode([0, 0])  # the argmax of NaN
    answers = [zeros if zeros.strip() else "?"]
    file = write(tmp_path / "g.jsonl", [{"prompt": "a", "answer": answers}])
    result = ask(broken, file, tokens=2, stop=())
    assert result.values["acc"] == 0.0
    assert [p["predicted"] for p in result.predictions] == [None]
    assert json.dumps(result.predictions, allow_nan=False)


def test_the_first_stop_ends_an_answer(tmp_path: Path) -> None:
    who = subject(tmp_path)
    whole = by_hand(who, "zebra", 6)
    assert len(whole) >= 2
    first = whole[0]
    stop = next((x for x in whole[1:] if x != first), whole[1])
    file = write(tmp_path / "g.jsonl", [{"prompt": "zebra", "answer": "?"}])
    (p,) = ask(who, file, tokens=6, stop=(stop,)).predictions
    assert p["predicted"] == whole[: whole.index(stop)].strip()


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("ab\ncd", ("\n",), "ab"),
        ("ab. c\n", ("\n", "."), "ab"),
        ("ab", ("\n",), "ab"),
        ("ab", (), "ab"),
    ],
)
def test_cut(text: str, stop: tuple[str, ...], left: str) -> None:
    assert cut(text, stop) == left


def test_an_answer_depends_on_no_other_question_and_on_no_mesh(tmp_path: Path) -> None:
    who = subject(tmp_path)
    rows = who.tokenizer.encode_documents(PROMPTS)
    together = continue_greedily(who, rows, 12)
    assert [continue_greedily(who, [row], 12)[0] for row in rows] == together
    assert continue_greedily(who, rows[::-1], 12)[::-1] == together
    for mesh in (MeshShape(fsdp=8), MeshShape(data=2, tensor=2, context=2)):
        assert continue_greedily(subject(tmp_path, mesh), rows, 12) == together


def test_examples_stand_before_every_prompt(tmp_path: Path) -> None:
    who = subject(tmp_path)
    shots = write(tmp_path / "s.jsonl", [{"prompt": "1+1=", "answer": ["2", "two"]}])
    wanted = by_hand(who, "1+1=2\n\n2+2=", 4).strip()
    file = write(tmp_path / "g.jsonl", [{"prompt": "2+2=", "answer": wanted}])
    assert ask(who, file, shots=shots, tokens=4, stop=()).values["acc"] == 1.0
