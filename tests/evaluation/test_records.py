"""A bad question is an error that names its file and line; none is left out."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jscale.data import Bytes
from jscale.errors import ConfigError, DataError
from jscale.evaluation import GreedyMatch, MultipleChoice
from jscale.evaluation.examination import open_tasks
from jscale.evaluation.records import read_chosen, read_open

GOOD = {"prompt": "a", "choices": ["b", "c"], "answer": 1}
OPEN = {"prompt": "a", "answer": "b"}


def write(path: Path, *lines: Any) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    return str(path)


def test_good_files_are_read_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", {**GOOD, "id": 7}, "", GOOD, "")
    assert [(q.where, q.solution) for q in read_chosen(file)] == [
        (f"{file}:{n}", "c") for n in (1, 3)
    ]
    more = write(tmp_path / "o.jsonl", "\ufeff" + json.dumps(OPEN), {**OPEN, "answer": ["x", "y"]})
    assert [q.answers for q in read_open(more)] == [("b",), ("x", "y")]


CHOSEN = {
    "not JSON: Expecting": "{",
    "not JSON: 'utf-8' codec": '{"prompt": "\udce9"}',
    "a JSON object is wanted, found list": [GOOD],
    "no field 'prompt'; did you mean 'promt'?": {**OPEN, "promt": "", "prompt": ...},
    "no field 'choices'": {"prompt": "a", "answer": 1},
    "no field 'answer'": {"prompt": "a", "choices": ["b", "c"]},
    "prompt must be text, found int": {**GOOD, "prompt": 1},
    "prompt has a lone surrogate": '{"prompt": "\\ud800"}',
    "choices must be a list of two texts or more": {**GOOD, "choices": ["b"]},
    "choices must be a list": {**GOOD, "choices": "bc"},
    "choice 1 must be text, found NoneType": {**GOOD, "choices": ["b", None]},
    "one of the choices is empty": {**GOOD, "choices": ["b", ""]},
    "two of them are the same": {**GOOD, "choices": ["b", "b"]},
    "answer must be the number of a choice, 0 to 1, not 2": {**GOOD, "answer": 2},
    "0 to 1, not -1": {**GOOD, "answer": -1},
    "0 to 1, not True": {**GOOD, "answer": True},
    "0 to 1, not 'c'": {**GOOD, "answer": "c"},
}
OPENS = {
    "no field 'answer'; did you mean 'answers'?": {"prompt": "a", "answers": "b"},
    "answer must be text, found int": {**OPEN, "answer": 4},
    "and none blank": {**OPEN, "answer": " "},
    "or a list of them": {**OPEN, "answer": []},
}


@pytest.mark.parametrize(
    ("read", "said", "line"),
    [(read_chosen, *item) for item in CHOSEN.items()]
    + [(read_open, *item) for item in OPENS.items()],
)
def test_a_bad_line_is_named(
    tmp_path: Path, read: Callable[[str], Any], said: str, line: Any
) -> None:
    if isinstance(line, dict):
        line = {name: value for name, value in line.items() if value is not ...}
    good = GOOD if read is read_chosen else OPEN
    file = write(tmp_path / "q.jsonl", good, "", line)
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:3: ") and said in str(caught.value)


def test_a_file_that_holds_no_question(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*none.jsonl: No such file"):
        read_chosen(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="q.jsonl holds no question"):
        read_chosen(write(tmp_path / "q.jsonl", "", " "))
    (tmp_path / "z.jsonl").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="z.jsonl:1: not JSON"):
        read_chosen(str(tmp_path / "z.jsonl"))


TASKS = {
    "needs the path": lambda: MultipleChoice(""),
    "length=1 must be 2": lambda: MultipleChoice("a.jsonl", length=1),
    "are the questions themselves": lambda: MultipleChoice("a.jsonl", shots="./a.jsonl"),
    "the questions themselves, which": lambda: GreedyMatch("a.jsonl", shots="a.jsonl"),
    "tokens=0 must be 1 or more": lambda: GreedyMatch("a.jsonl", tokens=0),
    "tokens=8 must be 1 or more, and below length": lambda: GreedyMatch("a", tokens=8, length=8),
    "an empty stop": lambda: GreedyMatch("a.jsonl", stop=("", "\n")),
}


@pytest.mark.parametrize("said", TASKS)
def test_a_task_checks_itself(said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TASKS[said]()
    assert said in str(caught.value)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", GOOD)
    pair = (MultipleChoice(file), MultipleChoice(file, length=9))
    with pytest.raises(ConfigError, match="two tasks are called 'q'"):
        open_tasks(pair, Bytes().load(), 16)
    named = (MultipleChoice(file), MultipleChoice(file, name="r"))
    assert list(open_tasks(named, Bytes().load(), 16)) == ["q", "r"]


def test_a_question_that_is_too_long_is_named_and_not_cut(tmp_path: Path) -> None:
    tokenizer = Bytes().load()
    file = write(tmp_path / "q.jsonl", GOOD, {**GOOD, "choices": ["b", "c" * 20]})
    said = "q.jsonl:2: prompt and choice 1 make 22 tokens, more than the 16 of a row of training"
    with pytest.raises(DataError, match=said):
        MultipleChoice(file).open(tokenizer, 16)
    MultipleChoice(file, length=22).open(tokenizer, 16)
    with pytest.raises(DataError, match="more than the 21 of length"):
        MultipleChoice(file, length=21).open(tokenizer, 64)
    file = write(tmp_path / "o.jsonl", {**OPEN, "prompt": "a" * 10})
    said = "o.jsonl:1: the prompt makes 11 tokens, which leave no room for an answer of 6 in the 16"
    with pytest.raises(DataError, match=said):
        GreedyMatch(file, tokens=6).open(tokenizer, 16)
    GreedyMatch(file, tokens=5).open(tokenizer, 16)
