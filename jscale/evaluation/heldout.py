"""Means over held-out text: loss, perplexity, bits per byte."""

# B batch, T length, V vocabulary.

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jscale import train
from jscale.accumulate import Sums
from jscale.data.dataset import Dataset
from jscale.data.feed import feed_epoch
from jscale.errors import ConfigError
from jscale.evaluation.token_bytes import UnknownBytes, token_bytes
from jscale.losses import Batch
from jscale.mesh import Layout
from jscale.models.model import Params

LARGEST = 700.0  # nats of which exp still is a number


def heldout_means(
    task: train.Task, params: Params, corpus: Dataset, batches: int | None = None
) -> dict[str, float]:
    """The mean loss and metrics over the held-out rows, or over so many batches of them.

    Every row counts once, weighted by its tokens; one program serves all calls with one task. Where
    the loss reports `nll` (nats per token), there is also `perplexity`, exp(nll), and, where the
    bytes of a token are known, `bits_per_byte`: the nll of all counted tokens in bits over `bytes`,
    the UTF-8 bytes of the text that they stand for. The end of a document counts as a token, and
    adds no byte.

    Raises:
        ConfigError: the data hold nothing out, or fewer than one batch is asked for.
    """
    if batches is not None and batches < 1:
        raise ConfigError(f"evaluation needs at least 1 batch, not {batches}")
    if corpus.heldout is None:
        raise ConfigError("nothing is held out: give data.heldout a share above 0")
    program = train.make_evaluation(task)
    lengths = None if why_no_bytes(corpus) else token_bytes(corpus.tokenizer)
    count, total, pending = counter(task.layout), Totals(), None
    with feed_epoch(corpus.heldout, train.sharding_of(task.layout)) as feeding:
        for batch in islice(feeding, batches):
            size = None if lengths is None else count(batch, lengths)
            sums = program(params, batch)
            # Two batches under way at most: for the memory, and so that a signal is heard.
            if pending is not None:
                total.add(*pending)
            pending = sums, size
    assert pending is not None, "a held-out stream has at least one row"
    total.add(*pending)
    return total.means()


def why_no_bytes(corpus: Dataset) -> str:
    """Why there are no bits per byte on these data, as the end of a sentence; "" where there are.

    >>> from jscale.data import Bytes, TextData, Texts
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as cache:
    ...     data = TextData(Texts(("ab", "cd")), Bytes(), 8, 1, heldout=0.5, cache=cache)
    ...     why_no_bytes(data.open(seed=0))
    ''
    """
    if "targets" not in corpus.train.shapes:
        return "its batches have no targets that are text"
    try:
        token_bytes(corpus.tokenizer)
    except UnknownBytes as reason:
        return f"the bytes of the tokenizer's tokens are not known: {reason}"
    return ""


@lru_cache(maxsize=8)
def counter(layout: Layout) -> Callable[[Batch, Any], Array]:
    """A jitted function of a batch and the bytes of each token: the bytes of each row's targets."""

    def count(batch: Batch, lengths: Int32[Array, " V"]) -> Float[Array, "2 B"]:
        weights = batch["weights"].astype(jnp.float32)
        each = lengths[batch["targets"]].astype(jnp.float32)
        # By rows: a float32 is exact up to 2**24, which a row never reaches and a batch may.
        return jnp.stack([(each * weights).sum(-1), weights.sum(-1)])

    return jax.jit(count, out_shardings=layout.replicated())


class Totals:
    """Sums over batches, in the float64 of the host."""

    def __init__(self) -> None:
        self.loss = self.weight = self.bytes = self.counted = 0.0
        self.metrics: dict[str, tuple[float, float]] = {}
        self.sized = True

    def add(self, sums: Sums, size: Array | None) -> None:
        """Add one batch, waiting for it."""
        self.loss += float(sums.loss)
        self.weight += float(sums.weight)
        for name, (value, weight) in sums.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = before[0] + float(value), before[1] + float(weight)
        self.sized = self.sized and size is not None
        if size is not None:
            in_bytes, counted = np.asarray(size, np.float64).sum(-1).tolist()
            self.bytes, self.counted = self.bytes + in_bytes, self.counted + counted

    def means(self) -> dict[str, float]:
        """The means, by name."""
        named = {name: mean(*pair) for name, pair in self.metrics.items()}
        named |= {"loss": mean(self.loss, self.weight), "tokens": self.weight}
        return {**named, **self._of_text(named)}

    def _of_text(self, named: Mapping[str, float]) -> dict[str, float]:
        nll = named.get("nll", math.nan)
        if math.isnan(nll):
            return {}
        found = {"perplexity": math.exp(nll)} if nll < LARGEST else {}
        total, weight = self.metrics["nll"]
        # A loss may count other tokens than the batch does: their bytes are not these.
        if self.sized and self.bytes and math.isclose(weight, self.counted, rel_tol=1e-6):
            found |= {"bits_per_byte": total / math.log(2) / self.bytes, "bytes": self.bytes}
        return found


def mean(total: float, count: float) -> float:
    return total / count if count else total
