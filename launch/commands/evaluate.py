"""`jscale evaluate RUN`: held-out text and tasks, measured on a trained model."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jscale.errors import ConfigError, did_you_mean
from jscale.launch.commands.arguments import run_from, run_parser
from jscale.launch.commands.progress import progress
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.evaluation.task import EvaluationTask, Questions, Result
    from jscale.run.restored import Run

COUNTS = ("tokens", "bytes", "count")


def main(arguments: Sequence[str]) -> int:
    """Print what a run's model reaches on its held-out text and on tasks."""
    options = parser().parse_args(list(arguments))
    quiet()
    from jscale.evaluation.examination import open_tasks

    out = Path(options.out) if options.out else None
    if out:
        check_writable(out)
    asked = [task_from(text) for text in options.task]
    if options.lm_eval:
        from jscale.evaluation.harness import installed

        installed()
    run = run_from(options)
    tasks = open_tasks(asked, run.tokenizer, run.recipe.data.length)
    own = own_tasks(run)
    for title in tasks.keys() & own.keys():
        tell(f"the recipe's own task {title!r} gives way to the one that is asked for")
    tasks = {**own, **tasks}
    means = heldout(run, options, bool(tasks or options.lm_eval))
    results = {title: examine(run, title, questions) for title, questions in tasks.items()}
    if options.lm_eval:
        results |= harness_results(run, options)
    show(run.step, means, results, as_json=options.json)  # before a full disk ends it
    if out:
        write_predictions(out, results)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = run_parser("evaluate", "Measure a trained model: held-out text, and tasks.")
    parser.add_argument("--batches", type=int, help="batches of held-out text at most (all)")
    parser.add_argument(
        "--no-heldout", action="store_true", help="only the tasks: the run's data are not read"
    )
    parser.add_argument(
        "--task",
        metavar="KIND=FILE",
        action="append",
        default=[],
        help="multiple_choice=FILE or greedy_match=FILE of JSON lines, or a task as a recipe writes"
        " it: 'GreedyMatch(\"sums.jsonl\", tokens=8)'",
    )
    parser.add_argument(
        "--lm-eval",
        metavar="TASK[,TASK]",
        help="tasks of EleutherAI's harness, defined by YAML files in --include-path",
    )
    parser.add_argument("--include-path", metavar="DIR", help="of the YAML files of --lm-eval")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", metavar="FILE", help="write every prediction, as JSON lines")
    return parser


def task_from(text: str) -> "EvaluationTask":
    """The task that a `--task` asks for.

    Raises:
        ConfigError: it names no kind of task, or one that does not fit.
    """
    from jscale.config.parse import parse
    from jscale.evaluation import EvaluationTask, GreedyMatch, MultipleChoice

    kinds = {"multiple_choice": MultipleChoice, "greedy_match": GreedyMatch}
    kind, equals, file = text.partition("=")
    if equals and kind.isidentifier():
        if kind not in kinds:
            raise ConfigError(f"--task: there is no {kind!r}; {did_you_mean(kind, kinds)}")
        return kinds[kind](file)
    if "(" not in text:
        raise ConfigError(f"--task {text!r} is not KIND=FILE; {did_you_mean(text, kinds)}")
    names = {kind.__name__: kind for kind in kinds.values()}
    return parse("--task", text, EvaluationTask, names)


def own_tasks(run: "Run") -> "dict[str, Questions]":
    """The tasks of the run's own recipe, whose files lie where the run was started."""
    from jscale.evaluation.examination import open_tasks
    from jscale.run.restored import started_in

    evaluation = run.recipe.evaluation
    with contextlib.chdir(started_in(run.folder)):
        tasks = evaluation.tasks if evaluation else ()
        return open_tasks(tasks, run.tokenizer, run.recipe.data.length)


def heldout(run: "Run", options: argparse.Namespace, others: bool) -> dict[str, float]:
    """The means over held-out text; nothing where that is not wanted, or tasks are all there is."""
    from jscale.evaluation.heldout import heldout_means, why_no_bytes

    if options.no_heldout:
        if not others:
            raise ConfigError("with --no-heldout there is nothing to measure: give a --task")
        return {}
    if not run.recipe.data.heldout and others:
        tell("the recipe holds nothing out (data.heldout=0): only the tasks are measured")
        return {}
    corpus = run.corpus()
    if why := why_no_bytes(corpus):
        tell(f"no bits per byte: {why}")
    return heldout_means(run.task, run.params, corpus, options.batches)


def examine(run: "Run", title: str, questions: "Questions") -> "Result":
    with progress(title) as tell_done:
        return questions.ask(run.subject, tell_done)


def harness_results(run: "Run", options: argparse.Namespace) -> "dict[str, Result]":
    from jscale.evaluation.harness import run_harness

    include = Path(options.include_path) if options.include_path else None
    return run_harness(run.subject, options.lm_eval.split(","), include)


def write_predictions(path: Path, results: "Mapping[str, Result]") -> None:
    """One JSON object a question, with the task that it is of."""
    from jscale.metrics.jsonl import json_value

    write = partial(json.dumps, ensure_ascii=False, allow_nan=False, default=str)
    lines = [
        write({"task": title, **json_value(prediction)}) + "\n"
        for title, result in results.items()
        for prediction in result.predictions
    ]
    with writing_out(path):
        path.write_text("".join(lines), encoding="utf-8")


def check_writable(path: Path) -> None:
    """See, before any work, that there is a place for the predictions; what is there is kept.

    Raises:
        ConfigError: they cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        return  # a pipe, to be opened once
    new = not path.exists()
    with writing_out(path):
        path.open("ab").close()
        if new:
            path.unlink()


@contextlib.contextmanager
def writing_out(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}") from error


def show(
    step: int, means: Mapping[str, float], results: "Mapping[str, Result]", as_json: bool
) -> None:
    """Print the numbers, as JSON or as lines for people."""
    if as_json:
        tasks = {title: as_json_numbers(result.values) for title, result in results.items()}
        found = {"step": step, **as_json_numbers(means), **({"tasks": tasks} if tasks else {})}
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    rows = [("step", f"{step}"), *((name, number(name, x)) for name, x in means.items())]
    for title, result in results.items():
        rows += [(f"task/{title}/{name}", text) for name, text in with_errors(result.values)]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def as_json_numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    from jscale.metrics.jsonl import json_number

    return {name: json_number(value) for name, value in values.items()}


def with_errors(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Each number, with its standard error where it has one."""
    for name, value in values.items():
        error = values.get(f"{name}_stderr")
        if not name.endswith("_stderr"):
            yield name, number(name, value) + ("" if error is None else f" ± {error:.4f}")


def number(name: str, value: float) -> str:
    return f"{value:.0f}" if name in COUNTS else f"{value:.4f}"


def tell(text: str) -> None:
    print(f"jscale: {text}", file=sys.stderr)
