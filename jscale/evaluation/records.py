"""Questions in JSON lines: read whole, and refused by file and line where one is not as it must be.

An evaluation counts its questions, so no line is left out: the first bad one is an error.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jscale.data.source import reading
from jscale.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Chosen:
    """A question with choices, one of which is right; `where` is its file and line."""

    where: str
    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def solution(self) -> str:
        """The right choice."""
        return self.choices[self.answer]


@dataclass(frozen=True)
class Open:
    """A question with the answers that are right; `where` is its file and line."""

    where: str
    prompt: str
    answers: tuple[str, ...]

    @property
    def solution(self) -> str:
        """The first of the right answers."""
        return self.answers[0]


def read_chosen(path: str) -> list[Chosen]:
    """The questions of a file of {"prompt": text, "choices": [text, …], "answer": index}.

    Raises:
        DataError: the file cannot be read, holds nothing, or a line is no such object.
    """
    return [_chosen(where, record) for where, record in read_records(path)]


def read_open(path: str) -> list[Open]:
    """The questions of a file of {"prompt": text, "answer": text or [text, …]}.

    Raises:
        DataError: the file cannot be read, holds nothing, or a line is no such object.
    """
    return [_open(where, record) for where, record in read_records(path)]


def read_records(path: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The object of each line that is not blank, with `file:line`; raises `DataError`."""
    with reading(path):
        data = Path(path).expanduser().read_bytes()
    found = [(where, _object(where, line)) for where, line in _lines(path, data)]
    if not found:
        raise DataError(f"{path} holds no question")
    return found


def _lines(path: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _object(where: str, line: bytes) -> Mapping[str, Any]:
    try:
        # Decoded first: json.loads guesses UTF-16 from NUL bytes.
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object is wanted, found {type(value).__name__}")
    return value


def _field(where: str, record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; {did_you_mean(name, record)}")
    return record[name]


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} must be text, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name} has a lone surrogate, which is no Unicode") from None
    return value


def _chosen(where: str, record: Mapping[str, Any]) -> Chosen:
    prompt = _text(where, "prompt", _field(where, record, "prompt"))
    choices = _field(where, record, "choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError(f"{where}: choices must be a list of two texts or more")
    texts = tuple(_text(where, f"choice {i}", choice) for i, choice in enumerate(choices))
    if "" in texts or len(set(texts)) < len(texts):
        raise DataError(f"{where}: one of the choices is empty, or two of them are the same")
    answer = _field(where, record, "answer")
    if type(answer) is not int or not 0 <= answer < len(texts):
        raise DataError(
            f"{where}: answer must be the number of a choice, 0 to {len(texts) - 1}, not {answer!r}"
        )
    return Chosen(where, prompt, texts, answer)


def _open(where: str, record: Mapping[str, Any]) -> Open:
    prompt = _text(where, "prompt", _field(where, record, "prompt"))
    answer = _field(where, record, "answer")
    answers = answer if isinstance(answer, list) else [answer]
    texts = tuple(_text(where, "answer", text) for text in answers)
    if not texts or not all(text.strip() for text in texts):
        raise DataError(f"{where}: answer must be a text, or a list of them, and none blank")
    return Open(where, prompt, texts)


def with_shots(
    questions: Sequence[Chosen | Open], shots: Sequence[Chosen | Open], between: str, after: str
) -> list[str]:
    """The prompt of each question, after the worked examples: their prompts with their solutions.

    >>> example, question = Open("a:1", "1+1=", ("2",)), Open("b:1", "2+2=", ("4",))
    >>> with_shots([question], [example], between=" ", after=";")
    ['1+1= 2;2+2=']
    """
    examples = "".join(f"{shot.prompt}{between}{shot.solution}{after}" for shot in shots)
    return [examples + question.prompt for question in questions]


def check_files(kind: str, path: str, shots: str | None) -> None:
    """Refuse a task without a file, and examples that are the questions themselves.

    Raises:
        ConfigError: the path is empty, or both are one file.
    """
    if not path or shots == "":
        raise ConfigError(f"{kind} needs the path of a file of questions")
    if shots is not None and Path(shots).absolute() == Path(path).absolute():
        raise ConfigError(
            f"{kind}: the examples (shots={shots!r}) are the questions themselves, which would show"
            " the model their answers"
        )
