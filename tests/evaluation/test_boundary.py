"""A prompt and what continues it are encoded together, and split where all continuations agree."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jscale.data.tokenizers import BOS, EOS, PAD, Bytes, Tokenizer
from jscale.errors import DataError
from jscale.evaluation import MultipleChoice
from jscale.evaluation.boundary import encode_continuations


def merging(*merges: str, bos: str | None = BOS) -> Tokenizer:
    """The bytes, and a token for each of these pairs."""
    about = json.loads(Bytes().load().text)
    vocabulary = about["model"]["vocab"]
    for pair in merges:
        vocabulary[pair.replace(" ", "")] = 300 + len(vocabulary)
    about["model"]["merges"] = [pair.split(" ") for pair in merges]
    return Tokenizer(json.dumps(about), bos, EOS, PAD, "the test's")


def names(tokenizer: Tokenizer, ids: Any) -> list[str]:
    return [str(tokenizer._engine.id_to_token(i)) for i in ids]


def test_where_tokens_end_with_the_prompt_the_choice_is_what_follows() -> None:
    tokenizer = merging("c d")
    (found,) = encode_continuations(tokenizer, ["ab"], [["cd", "c"]])
    assert [names(tokenizer, row[found.start :]) for row in found.rows] == [["cd"], ["c"]]
    assert found.start == 3 and found.rows[0][0] == tokenizer.bos


def test_a_token_across_the_boundary_is_scored_for_every_choice() -> None:
    tokenizer = merging("b c")
    (found,) = encode_continuations(tokenizer, ["ab"], [["cx", "dx"]])
    # "abcx" is [a, bc, x], which training would see, and no [a, b, c, x]; so "b" counts for both.
    assert [names(tokenizer, row[found.start :]) for row in found.rows] == [
        ["bc", "x"],
        ["b", "d", "x"],
    ]
    alone = encode_continuations(tokenizer, ["ab"], [["dx"]])[0]
    assert names(tokenizer, alone.rows[0][alone.start :]) == ["d", "x"]


def test_without_a_beginning_something_must_stand_before_a_choice() -> None:
    tokenizer = merging("a b", bos=None)
    (found,) = encode_continuations(tokenizer, ["xa"], [["b", "c"]])
    assert (found.start, len(found.rows[0])) == (1, 2)
    for prompt in ("", "a"):
        with pytest.raises(DataError, match="no token stands before the continuation"):
            encode_continuations(tokenizer, [prompt], [["b", "c"]])
    (found,) = encode_continuations(merging(), [""], [["b", "c"]])
    assert found.start == 1


def test_the_question_at_fault_is_named(tmp_path: Path) -> None:
    good = {"prompt": "xy", "choices": ["b", "c"], "answer": 0}
    lines = [good, {**good, "prompt": ""}]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    task = MultipleChoice(str(path))
    with pytest.raises(DataError, match="q.jsonl:2: no token stands before the continuation of ''"):
        task.open(merging(bos=None), 16)
    replace(task, between=" ").open(merging(), 16)
