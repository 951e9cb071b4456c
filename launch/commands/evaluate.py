"""`jscale evaluate RUN`: the loss on the held-out text of a run's data."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import run_from, run_parser
from jscale.launch.quiet import quiet


def main(arguments: Sequence[str]) -> int:
    """Print the mean loss and the perplexity over the held-out rows."""
    parser = run_parser("evaluate", "The loss on a run's held-out text.")
    parser.add_argument("--batches", type=int, help="batches at most (all)")
    options = parser.parse_args(list(arguments))
    quiet()
    from jscale.evaluate import heldout_means
    from jscale.run.session import open_corpus

    run = run_from(options)
    started = started_in(Path(options.run).absolute())
    with contextlib.chdir(started):  # a recipe may name its files from there
        corpus = open_corpus(run.recipe, None)
    means = heldout_means(run.task, run.params, corpus, options.batches)
    print(json.dumps({"step": run.step, **means, **perplexity(means)}, indent=2))
    return 0


def perplexity(means: dict[str, float]) -> dict[str, float]:
    """The perplexity, where the loss counts the likelihood of tokens and it is a number."""
    nll = means.get("nll", math.nan)
    return {"perplexity": math.exp(nll)} if nll < 700 else {}


def started_in(folder: Path) -> Path:
    """The folder in which the run was started last, as far as it is known and still there."""
    try:
        where = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return Path.cwd()
    return Path(where) if isinstance(where, str) and Path(where).is_dir() else Path.cwd()
