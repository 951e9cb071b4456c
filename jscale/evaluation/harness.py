"""Tasks of EleutherAI's lm-evaluation-harness, asked of a model here (`jscale[lm-eval]`).

The harness reads its tasks' YAML files and data, makes the prompts and counts; the three questions
that it puts to a model are answered by the same programs as our own tasks'.
"""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jscale.errors import ConfigError, DataError, NumericError, did_you_mean
from jscale.evaluation.boundary import encode_continuations
from jscale.evaluation.greedy_match import continue_greedily, cut
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import Result
from jscale.generate import UNKNOWN
from jscale.score import likeliest, score

NO_NUMBERS = "the model's logits are not numbers, of which the harness would count some as right"
TOKENS = 256  # of a continuation, where a task does not say how many: the harness's own number
RESAMPLES = 1000  # for standard errors that have no formula


def installed(module: str = "lm_eval") -> Any:
    """A module of the harness.

    Raises:
        ConfigError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--lm-eval needs lm-eval: pip install 'jscale[lm-eval]' ({error})"
        ) from error


def run_harness(subject: Subject, tasks: Sequence[str], include: Path | None) -> dict[str, Result]:
    """What comes out of the tasks of these names, which YAML files in `include` define.

    Raises:
        ConfigError: the harness is not installed, there is no such folder or no such task.
        DataError: the data of a task cannot be read, or a question does not fit.
    """
    lm_eval = installed()
    if include is None or not include.is_dir():
        said = "none is given" if include is None else f"{include} is none"
        raise ConfigError(f"--lm-eval needs --include-path, the folder of its YAML files; {said}")
    manager = installed("lm_eval.tasks").TaskManager(
        include_path=str(include), include_defaults=False
    )
    for name in tasks:
        if name not in manager.all_tasks:
            hint = did_you_mean(name, manager.all_tasks)
            raise ConfigError(f"no YAML file in {include} defines the task {name!r}; {hint}")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # a fork of a process with JAX in it may hang
    try:
        found = lm_eval.simple_evaluate(
            language_model(subject),
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=RESAMPLES,
        )
    except (OSError, ImportError) as error:
        raise DataError(
            f"the harness cannot read the data of {', '.join(tasks)}: {error}"
        ) from error
    assert found is not None, "the first process is told the results"
    samples = found.get("samples", {})
    return {
        name: Result(numbers(values), [told(name, one) for one in samples.get(name, ())])
        for name, values in found["results"].items()
    }


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The harness's numbers under plain names.

    >>> numbers({"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 1})
    {'acc': 0.5, 'acc_stderr': 0.1, 'f1_strict': 1.0}
    """
    real = {name: value for name, value in values.items() if isinstance(value, int | float)}
    plain = lambda name: name.removesuffix(",none").replace(",", "_").replace("sample_len", "count")
    return {plain(name): float(value) for name, value in real.items()}


def told(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of one of the harness's questions."""
    return {
        "where": f"{task}:{sample['doc_id']}",
        "doc": sample["doc"],
        "answer": sample["target"],
        "predicted": sample["filtered_resps"],
    }


def language_model(subject: Subject) -> Any:
    """The subject as an `lm_eval.api.model.LM`."""
    return type("JscaleModel", (Answers, installed("lm_eval.api.model").LM), {})(subject)


class Answers:
    """The three questions of the harness; a request's `args` hold its texts."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = subject

    def loglikelihood(self, requests: Iterable[Any]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation given its context, and whether it is greedy."""
        pairs = [request.args for request in requests]
        contexts = [context for context, _ in pairs]
        subject = self.subject
        found = encode_continuations(subject.tokenizer, contexts, [[text] for _, text in pairs])
        rows = [continuations.rows[0] for continuations in found]
        for (context, _), row in zip(pairs, rows, strict=True):
            self._check_length(len(row), context)
        how = (subject.model, subject.params, rows, subject.layout)
        scored = score(*how, places=subject.places)
        greedy = likeliest(*how, places=subject.places)
        out = []
        for row, values, choice, pair in zip(rows, scored, greedy, found, strict=True):
            part = slice(pair.start - 1, None)
            total = float(values[part].astype(np.float64).sum())
            if np.isnan(total) or UNKNOWN in choice[part]:
                raise NumericError(NO_NUMBERS)
            out.append((total, choice[part].tolist() == list(row[pair.start :])))
        return out

    def loglikelihood_rolling(self, requests: Iterable[Any]) -> list[float]:
        """The log-probability of each text, read in windows as long as the rows of training."""
        subject, out = self.subject, []
        for request in requests:
            rows, new = windows(self._encode(request.args[0]), self._beginning(), subject.length)
            if not rows:
                out.append(0.0)
                continue
            found = score(
                subject.model, subject.params, rows, subject.layout, places=subject.places
            )
            parts = [
                float(x[-n:].astype(np.float64).sum()) for x, n in zip(found, new, strict=True)
            ]
            if np.isnan(sum(parts)):
                raise NumericError(NO_NUMBERS)
            out.append(sum(parts))
        return out

    def generate_until(self, requests: Iterable[Any]) -> list[str]:
        """The likeliest continuation of each context, up to one of its stops."""
        out: dict[int, str] = {}
        by_tokens: dict[int, list[tuple[int, list[int], tuple[str, ...]]]] = {}
        for number, request in enumerate(requests):
            context, settings = request.args
            ids = self.subject.tokenizer.encode_documents([context])[0][:-1]
            stop, tokens = stops_and_tokens(settings)
            tokens = tokens or min(TOKENS, self.subject.length - len(ids))
            self._check_length(len(ids) + max(tokens, 1), context)
            by_tokens.setdefault(tokens, []).append((number, ids, stop))
        for tokens, several in by_tokens.items():
            texts = continue_greedily(self.subject, [ids for _, ids, _ in several], tokens)
            for (number, _, stop), text in zip(several, texts, strict=True):
                if text is None:
                    raise NumericError(NO_NUMBERS)
                out[number] = cut(text, stop)
        return [out[number] for number in range(len(out))]

    def _encode(self, text: str) -> list[int]:
        return self.subject.tokenizer.encode_batch([text])[0]

    def _beginning(self) -> int:
        """What stands before a text: the beginning of a document, or the end of one before it."""
        tokenizer = self.subject.tokenizer
        return tokenizer.eos if tokenizer.bos is None else tokenizer.bos

    def _check_length(self, tokens: int, context: str) -> None:
        if tokens > self.subject.length:
            raise DataError(
                f"the question {context[:40]!r}… takes {tokens} tokens, more than the"
                f" {self.subject.length} of a row of training"
            )


def windows(ids: Sequence[int], beginning: int, length: int) -> tuple[list[list[int]], list[int]]:
    """A text in rows of `length` predictions at most, and how many of each row's are new.

    Every token is predicted once, and after the first row with as many before it as there is room
    for.

    >>> windows([1, 2, 3, 4, 5], beginning=0, length=3)
    ([[0, 1, 2, 3], [2, 3, 4, 5]], [3, 2])
    """
    rows, new = [], []
    whole = [beginning, *ids]
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        rows.append(whole[max(0, end - length) : end + 1])
        new.append(end - start)
    return rows, new


def stops_and_tokens(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None]:
    """The stop texts and the number of tokens of a task's `generation_kwargs`.

    Raises:
        ConfigError: it asks for something else than the likeliest continuation.
    """
    if settings.get("do_sample") or settings.get("temperature"):
        raise ConfigError("only greedy tasks can be run: generation_kwargs asks for sampling")
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    return tuple(text for text in stop if text), settings.get("max_gen_toks")
