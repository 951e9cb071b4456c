"""Multiple choice: the choice that the model finds likeliest after the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jscale.data.tokenizers import Tokenizer
from jscale.errors import ConfigError, DataError
from jscale.evaluation.boundary import Continuations, encode_continuations
from jscale.evaluation.records import Chosen, check_files, read_chosen, with_shots
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import Result, share
from jscale.metrics.jsonl import json_number
from jscale.score import Told, score, tell_nobody


@dataclass(frozen=True)
class MultipleChoice:
    """Questions of {"prompt": text, "choices": [text, …], "answer": index}, one a line.

    The prediction is the choice of the highest log-probability given the prompt: its sum over the
    choice's tokens for `acc`, divided by the choice's UTF-8 bytes for `acc_norm` and by its tokens
    for `acc_norm_tokens`. Of equals, the first counts.

    Raises:
        ConfigError: no path, examples that are the questions, or a length below 2.
    """

    path: str  # of the questions, as JSON lines
    name: str | None = None  # of its numbers; None: the file's name without its ending
    shots: str | None = None  # a file of worked examples, all of them put before every prompt
    between: str = ""  # text put between a prompt and a choice
    after: str = "\n\n"  # text put after a worked example
    length: int | None = None  # tokens of prompt and choice at most; None: of a row of training

    def __post_init__(self) -> None:
        check_files("MultipleChoice", self.path, self.shots)
        if self.length is not None and self.length < 2:
            raise ConfigError(f"MultipleChoice: length={self.length} must be 2 tokens or more")

    @property
    def title(self) -> str:
        """What its numbers are called."""
        return self.name or Path(self.path).stem

    def open(self, tokenizer: Tokenizer, length: int) -> "Choices":
        """The questions, read and encoded; raises `DataError` naming file and line."""
        questions = read_chosen(self.path)
        shots = read_chosen(self.shots) if self.shots else []
        prompts = with_shots(questions, shots, self.between, self.after)
        choices = [[self.between + choice for choice in q.choices] for q in questions]
        encoded = encode_at(questions, tokenizer, prompts, choices)
        limit = self.length or length
        for question, continuations in zip(questions, encoded, strict=True):
            for number, row in enumerate(continuations.rows):
                if len(row) > limit:
                    raise DataError(
                        f"{question.where}: prompt and choice {number} make {len(row)} tokens, more"
                        f" than the {limit} of {'length' if self.length else 'a row of training'};"
                        " shorten them, or give the task a larger length"
                    )
        return Choices(tuple(questions), tuple(encoded))


def encode_at(
    questions: Sequence[Chosen],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
) -> list[Continuations]:
    """The questions encoded, all at once; an error names file and line of the first at fault."""
    try:
        return encode_continuations(tokenizer, prompts, choices)
    except DataError:
        for question, prompt, texts in zip(questions, prompts, choices, strict=True):
            try:
                encode_continuations(tokenizer, [prompt], [texts])
            except DataError as error:
                raise DataError(f"{question.where}: {error}") from error
        raise


class Scored(NamedTuple):
    """A question's choices: the log-probability (nats), UTF-8 bytes and tokens of each."""

    logprobs: list[float]
    bytes: list[int]
    tokens: list[int]

    def likeliest(self, over: Sequence[int] | None = None) -> int | None:
        """The number of the likeliest choice, its log-probability divided by what it is `over`.

        None, which is never right, where one is not a number: numpy would call that the likeliest.
        """
        values = np.asarray(self.logprobs, np.float64)
        if np.isnan(values).any():
            return None
        return int((values if over is None else values / np.asarray(over)).argmax())


@dataclass(frozen=True, eq=False)
class Choices:
    """The questions of a `MultipleChoice`, ready to be asked."""

    questions: tuple[Chosen, ...]
    encoded: tuple[Continuations, ...]

    def ask(self, subject: Subject, tell: Told = tell_nobody) -> Result:
        """Accuracies with their standard errors, the number of questions, each prediction."""
        rows = [row for continuations in self.encoded for row in continuations.rows]
        found = iter(
            score(
                subject.model,
                subject.params,
                rows,
                subject.layout,
                places=subject.places,
                tell=tell,
            )
        )
        predictions = []
        for question, continuations in zip(self.questions, self.encoded, strict=True):
            # The log-probability of token i stands at i - 1: the first token has none.
            parts = [next(found)[continuations.start - 1 :] for _ in continuations.rows]
            scored = Scored(
                [float(part.astype(np.float64).sum()) for part in parts],
                [len(choice.encode()) for choice in question.choices],
                [len(part) for part in parts],
            )
            predictions.append(prediction(question, scored))
        hits = {
            "acc": [p["predicted"] == p["answer"] for p in predictions],
            "acc_norm": [p["predicted_norm"] == p["answer"] for p in predictions],
            "acc_norm_tokens": [p["predicted_norm_tokens"] == p["answer"] for p in predictions],
        }
        values = {k: v for name, hit in hits.items() for k, v in share(name, hit).items()}
        return Result({**values, "count": float(len(predictions))}, predictions)


def prediction(question: Chosen, scored: Scored) -> dict[str, Any]:
    """What is written of one question."""
    return {
        "where": question.where,
        "prompt": question.prompt,
        "choices": list(question.choices),
        "answer": question.answer,
        "predicted": scored.likeliest(),
        "predicted_norm": scored.likeliest(scored.bytes),
        "predicted_norm_tokens": scored.likeliest(scored.tokens),
        "logprobs": [json_number(value) for value in scored.logprobs],
        "tokens": scored.tokens,
    }
