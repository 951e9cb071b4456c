"""Greedy match: the model's likeliest continuation is the answer, letter by letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jscale.data.tokenizers import Tokenizer
from jscale.errors import ConfigError, DataError
from jscale.evaluation.records import Open, check_files, read_open, with_shots
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import Result, share
from jscale.generate import UNKNOWN, Sampling, generate
from jscale.rows import groups
from jscale.score import Told, tell_nobody

LIKELIEST = Sampling(temperature=0.0, top=None)


@dataclass(frozen=True)
class GreedyMatch:
    """Questions of {"prompt": text, "answer": text or [text, …]}, one a line.

    The model continues the prompt by its likeliest token, again and again, up to `tokens` of them,
    the end of the document or one of the `stop` texts, which is cut off with all after it. The
    prediction is right if, without the white space around it, it is one of the answers without
    theirs, letter by letter. `acc` is the share of right ones.

    Raises:
        ConfigError: no path, examples that are the questions, no token, or an empty stop.
    """

    path: str  # of the questions, as JSON lines
    name: str | None = None  # of its numbers; None: the file's name without its ending
    shots: str | None = None  # a file of worked examples, all of them put before every prompt
    between: str = ""  # text put between the prompt and the answer of a worked example
    after: str = "\n\n"  # text put after a worked example
    stop: tuple[str, ...] = ("\n",)  # texts of which the first to come ends the answer
    tokens: int = 32  # of the continuation at most
    length: int | None = None  # tokens of prompt and answer at most; None: of a row of training

    def __post_init__(self) -> None:
        check_files("GreedyMatch", self.path, self.shots)
        if isinstance(self.stop, str):
            raise ConfigError(f"GreedyMatch: stop takes a tuple of texts: ({self.stop!r},)")
        if "" in self.stop:
            raise ConfigError("GreedyMatch: an empty stop would end every answer; leave it out")
        if self.tokens < 1 or (self.length is not None and self.length <= self.tokens):
            raise ConfigError(
                f"GreedyMatch: tokens={self.tokens} must be 1 or more, and below length"
            )

    @property
    def title(self) -> str:
        """What its numbers are called."""
        return self.name or Path(self.path).stem

    def open(self, tokenizer: Tokenizer, length: int) -> "Prompts":
        """The questions, read and encoded; raises `DataError` naming file and line."""
        questions = read_open(self.path)
        shots = read_open(self.shots) if self.shots else []
        prompts = with_shots(questions, shots, self.between, self.after)
        # A document that has not ended: all of it but the eos.
        encoded = [tuple(ids[:-1]) for ids in tokenizer.encode_documents(prompts)]
        limit = (self.length or length) - self.tokens
        for question, ids in zip(questions, encoded, strict=True):
            if not ids:
                raise DataError(f"{question.where}: the prompt is empty")
            if len(ids) > limit:
                raise DataError(
                    f"{question.where}: the prompt makes {len(ids)} tokens, which leave no room for"
                    f" an answer of {self.tokens} in the {limit + self.tokens} of"
                    f" {'length' if self.length else 'a row of training'}; shorten it, or give the"
                    " task fewer tokens or a larger length"
                )
        return Prompts(self, tuple(questions), tuple(encoded))


@dataclass(frozen=True, eq=False)
class Prompts:
    """The questions of a `GreedyMatch`, ready to be asked."""

    task: GreedyMatch
    questions: tuple[Open, ...]
    encoded: tuple[tuple[int, ...], ...]

    def ask(self, subject: Subject, tell: Told = tell_nobody) -> Result:
        """The accuracy with its standard error, the number of questions, each prediction."""
        texts = continue_greedily(subject, self.encoded, self.task.tokens, tell)
        predictions = []
        for question, text in zip(self.questions, texts, strict=True):
            predicted = None if text is None else cut(text, self.task.stop).strip()
            predictions.append(
                {
                    "where": question.where,
                    "prompt": question.prompt,
                    "answer": list(question.answers),
                    "predicted": predicted,
                    "right": predicted in [answer.strip() for answer in question.answers],
                }
            )
        values = share("acc", [p["right"] for p in predictions])
        return Result({**values, "count": float(len(predictions))}, predictions)


def continue_greedily(
    subject: Subject, prompts: Sequence[Sequence[int]], tokens: int, tell: Told = tell_nobody
) -> list[str | None]:
    """The likeliest continuation of each prompt, up to so many tokens or the end of the document.

    None, which is never right, where the model's logits are not numbers. Prompts of like length are
    read together, always as many: filled with the last where they are fewer, so that no prompt's
    numbers depend on which others there are.
    """
    ways = subject.layout.batch_ways if subject.layout else 1
    found: dict[int, list[int]] = {}
    for group in groups([len(p) for p in prompts], ways, places=subject.places):
        rows = [prompts[number] for number in group.rows]
        rows += [rows[-1]] * (group.height - len(rows))
        out = generate(
            subject.model,
            subject.params,
            rows,
            length=tokens,
            sampling=LIKELIEST,
            stop=subject.tokenizer.eos,
            layout=subject.layout,
        )
        found |= dict(zip(group.rows, out, strict=False))
        tell(len(found), len(prompts))
    rows = [found[number] for number in range(len(prompts))]
    return [None if UNKNOWN in row else subject.tokenizer.decode(row) for row in rows]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stops.

    >>> cut("4\\nQ: 2", ("Q", "\\n"))
    '4'
    """
    ends = [text.find(one) for one in stop if one in text]
    return text[: min(ends)] if ends else text
