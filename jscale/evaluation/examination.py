"""Tasks opened together before a model is examined, so that what is wrong is found at the start."""

from collections.abc import Sequence

from jscale.data.tokenizers import Tokenizer
from jscale.errors import ConfigError
from jscale.evaluation.task import EvaluationTask, Questions


def check_titles(tasks: Sequence[EvaluationTask]) -> None:
    """Refuse two tasks whose numbers would have one name.

    Raises:
        ConfigError: there are two such tasks.
    """
    titles = [task.title for task in tasks]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tasks are called {twice!r}: give one of them a name of its own")


def open_tasks(
    tasks: Sequence[EvaluationTask], tokenizer: Tokenizer, length: int
) -> dict[str, Questions]:
    """The questions of each task, by its title, for a model trained on rows of so many places.

    Raises:
        ConfigError: two tasks have one title.
        DataError: a file cannot be read, or a question does not fit; file and line are named.
    """
    check_titles(tasks)
    return {task.title: task.open(tokenizer, length) for task in tasks}
