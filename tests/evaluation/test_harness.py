"""lm-evaluation-harness asks our models: its numbers of the same questions are ours."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from close import LAYOUT
from evaluation.subjects import subject

from jscale.errors import ConfigError, DataError, NumericError
from jscale.evaluation import GreedyMatch, MultipleChoice
from jscale.evaluation.greedy_match import continue_greedily
from jscale.evaluation.harness import Answers, run_harness, stops_and_tokens, windows
from jscale.generate import UNKNOWN
from jscale.score import likeliest, score
from jscale.text import continue_texts

QUESTIONS = [
    {"prompt": f"{n} bottles", "choices": ["green", "red", "of glass"], "answer": n % 3}
    for n in range(12)
]
OPEN = [{"prompt": f"{n} bottles", "answer": "green"} for n in range(5)]
CHOICE = """
task: bottles
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
MATCH = """
task: match
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
BITS = """
task: bits
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{prompt}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of YAML files and their data, and no way to anything else."""
    reason = "lm-eval is not installed: pip install 'jscale[lm-eval]'"
    pytest.importorskip("lm_eval", reason=reason)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name, text, questions in (
        ("bottles", CHOICE, QUESTIONS),
        ("match", MATCH, OPEN),
        ("bits", BITS, OPEN),
    ):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, questions)))
        (tmp_path / f"{name}.yaml").write_text(text.format(file=data))
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_its_numbers_are_ours(tasks: Path) -> None:
    who = subject(tasks / "cache")
    found = run_harness(who, ["bottles", "match", "bits"], tasks)
    task = MultipleChoice(str(tasks / "bottles.jsonl"), between=" ")
    ours = task.open(who.tokenizer, who.length).ask(who)
    for name in ("acc", "acc_norm"):
        assert found["bottles"].values[name] == pytest.approx(ours.values[name])
        error = found["bottles"].values[f"{name}_stderr"]
        assert error == pytest.approx(ours.values[f"{name}_stderr"], rel=1e-6)
    for theirs, own in zip(found["bottles"].predictions, ours.predictions, strict=True):
        np.testing.assert_allclose(
            [value for value, _ in theirs["predicted"]], own["logprobs"], rtol=LAYOUT
        )
    assert found["bottles"].values["count"] == ours.values["count"] == 12
    match = GreedyMatch(str(tasks / "match.jsonl"), tokens=5)
    own = match.open(who.tokenizer, who.length).ask(who)
    assert found["match"].values["exact_match"] == own.values["acc"]
    texts = [str(q["prompt"]) for q in OPEN]
    rows = [ids[:-1] for ids in who.tokenizer.encode_documents(texts)]
    nats = -sum(row.sum() for row in score(who.model, who.params, rows, who.layout))
    bits = nats / np.log(2) / sum(map(len, texts))
    assert found["bits"].values["bits_per_byte"] == pytest.approx(bits, rel=LAYOUT)


def test_what_it_cannot_find_is_named(tasks: Path) -> None:
    who = subject(tasks / "cache")
    with pytest.raises(ConfigError, match="defines the task 'bottle'; did you mean 'bottles'?"):
        run_harness(who, ["bottle"], tasks)
    with pytest.raises(ConfigError, match="needs --include-path, .*; none is given"):
        run_harness(who, ["bottles"], None)
    with pytest.raises(ConfigError, match="nowhere is none"):
        run_harness(who, ["bottles"], tasks / "nowhere")


def test_without_it_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'jscale\[lm-eval\]'"):
        run_harness(subject(tmp_path), ["x"], tmp_path)


class Asked(NamedTuple):
    """A request, as far as it is looked at."""

    args: tuple[Any, ...]


def test_its_three_questions_are_answered(tmp_path: Path) -> None:
    who = subject(tmp_path)
    answers = Answers(who)
    (first,) = continue_greedily(who, who.tokenizer.encode_documents(["ab"]), 1)
    pairs = [("ab", "x"), ("ab", "longer than that"), ("b", "x")]
    found = answers.loglikelihood([Asked(pair) for pair in pairs])
    assert all(value < 0 for value, _ in found) and len(found) == 3
    text = "a text that is longer than one row of this model " * 5
    short, whole = answers.loglikelihood_rolling([Asked(("ab",)), Asked((text,))])
    assert whole < short < 0 and answers.loglikelihood_rolling([Asked(("",))]) == [0.0]
    kwargs = {"until": ["\n"], "max_gen_toks": 4}
    texts = answers.generate_until([Asked(("ab", kwargs)), Asked(("ab", {"until": "\n"}))])
    assert texts[1].startswith(texts[0]) and isinstance(first, str)
    with pytest.raises(DataError, match="takes 206 tokens, more than the 128"):
        answers.loglikelihood([Asked(("a" * 200, "b" * 5))])


def test_greedy_continuations_are_told_from_others(tmp_path: Path) -> None:
    who = subject(tmp_path)
    prompts = [letter * n for letter in "abcdefghij" for n in (1, 2, 3)]
    rows = [ids[:-1] for ids in who.tokenizer.encode_documents(prompts)]
    texts = continue_greedily(who, rows, 1)
    pairs = [(p, t) for p, t in zip(prompts, texts, strict=True) if t and t.isascii()]
    assert pairs, "a model that has learnt nothing now and then writes a letter"
    others = [(prompt, "x" if text != "x" else "y") for prompt, text in pairs]
    found = Answers(who).loglikelihood([Asked(pair) for pair in [*pairs, *others]])
    assert [greedy for _, greedy in found] == [True] * len(pairs) + [False] * len(others)


def test_a_model_that_knows_no_number_answers_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The harness would count a NaN, which is no smaller than any other, as right."""
    who = subject(tmp_path)
    broken = replace(who, params=jax.tree.map(lambda x: x * np.nan, who.params))
    (choice,) = likeliest(broken.model, broken.params, [[1, 2, 3]], broken.layout)
    assert choice.tolist() == [UNKNOWN, UNKNOWN]
    for ask in (
        lambda: Answers(broken).loglikelihood([Asked(("ab", "x"))]),
        lambda: Answers(broken).loglikelihood_rolling([Asked(("ab",))]),
        lambda: Answers(broken).generate_until([Asked(("ab", {"max_gen_toks": 2}))]),
    ):
        with pytest.raises(NumericError, match="logits are not numbers"):
            ask()
    model, params, words = broken.model, broken.params, who.tokenizer
    assert continue_texts(model, params, words, ["ab"], length=2, layout=who.layout) == [""]
    assert "a text ends where it has none to draw" in caplog.text


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 100])
def test_windows_predict_every_token_once(length: int) -> None:
    ids = list(range(1, 8))
    rows, new = windows(ids, 0, length)
    assert [token for row, n in zip(rows, new, strict=True) for token in row[-n:]] == ids
    assert all(len(row) <= length + 1 and n < len(row) for row, n in zip(rows, new, strict=True))


def test_sampling_is_refused() -> None:
    assert stops_and_tokens({"until": "a", "do_sample": False}) == (("a",), None)
    for settings in ({"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(ConfigError, match="asks for sampling"):
            stops_and_tokens(settings)
