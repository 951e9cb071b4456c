"""`jscale evaluate RUN`: the loss on the held-out text of a run's data."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    """Print the mean loss and the perplexity over the held-out rows."""
    parser = Parser(prog="jscale evaluate", description="The loss on a run's held-out text.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--step", type=int, help="a checkpoint's step (the newest)")
    parser.add_argument("--batches", type=int, help="batches at most (all)")
    options = parser.parse_args(list(arguments))
    from jscale.evaluate import heldout_means
    from jscale.restored import open_run
    from jscale.session import open_corpus

    run = open_run(Path(options.run), options.step)
    corpus = open_corpus(run.recipe, None)
    means = heldout_means(run.task, run.params, corpus, options.batches)
    print(json.dumps({"step": run.step, **means, "perplexity": math.exp(means["nll"])}, indent=2))
    return 0
