"""Means over held-out text."""

from itertools import islice

import jax
import jax.numpy as jnp

from jscale import train
from jscale.data.corpus import Corpus
from jscale.data.feed import feed_epoch
from jscale.errors import ConfigError
from jscale.models.model import Params


def heldout_means(
    task: train.Task, params: Params, corpus: Corpus, batches: int | None = None
) -> dict[str, float]:
    """The mean loss and metrics over the held-out rows, or over so many batches of them.

    Every row counts once, weighted by its tokens; one program serves all calls with one task.

    Raises:
        ConfigError: the data hold nothing out, or fewer than one batch is asked for.
    """
    if batches is not None and batches < 1:
        raise ConfigError(f"evaluation needs at least 1 batch, not {batches}")
    if corpus.heldout is None:
        raise ConfigError("nothing is held out: give data.heldout a share above 0")
    program, total = train.make_evaluation(task), None
    with feed_epoch(corpus.heldout, train.sharding_of(task.layout)) as feeding:
        for batch in islice(feeding, batches):
            sums = program(params, batch)
            # Two batches under way at most: for the memory, and so that a signal is heard.
            jax.block_until_ready(total)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    assert total is not None, "a held-out stream has at least one row"
    return {name: float(value) for name, value in train.means(total).items()}
