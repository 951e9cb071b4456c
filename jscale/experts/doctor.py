"""How data are routed by a model as it is, before it is trained on them: training's way forward.

Nothing is learned and nothing is written.
"""

# A microbatches.

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jscale import train
from jscale.accumulate import split
from jscale.ahead import at_hand
from jscale.checkpoint.restore import restore
from jscale.checkpoint.sizes import readable
from jscale.data.dataset import Dataset
from jscale.data.feed import feed
from jscale.errors import ConfigError, DeviceMemoryError
from jscale.experts.counts import by_layer, layers
from jscale.experts.figures import imbalance
from jscale.experts.journal import Entry
from jscale.explain import bytes_of
from jscale.losses import Batch, evaluate_loss
from jscale.mesh.devices import devices
from jscale.models.model import Params
from jscale.models.steered import joined
from jscale.precision import cast
from jscale.recipe import Recipe

ROOM = 0.8  # of a device's memory that weights may take; activations need the rest
SHARED = (2, 4, 8, 16, 32, 64)  # devices for which it is told what room they would need

Told = Callable[[int, int], None]


class Seen(NamedTuple):
    """The layers in each microbatch, and in which batches choices found no room, of how many."""

    entries: tuple[Entry, ...]
    batches: int
    bounded: bool = False  # whether the recipe has bounds
    lost: float = 0.0  # choices without room within them
    replayed: int = 0  # batches that had some


def initial(recipe: Recipe, task: train.Task, folder: Path | None = None) -> Params:
    """The weights with which a run of this recipe begins, or those of the newest checkpoint.

    Raises:
        CheckpointError: the folder holds no sound checkpoint, or one of another model.
    """
    if folder is None:
        return task.model.init(jax.random.key(recipe.seed), task.layout)
    state: train.State = restore(folder / "checkpoints", train.shapes(task)).state
    return train.evaluation_params(task.model, recipe.optimizer, state)


def check_memory(task: train.Task, hint: str) -> None:
    """See that the weights can be held here, before anything is made.

    Raises:
        DeviceMemoryError: they cannot; `hint` is what to do then.
    """
    here, count = at_hand().memory, len(devices())
    if here is None:  # processors, real or simulated, share the memory of the host
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
    needed = bytes_of(train.shapes(task).params)
    if needed > ROOM * here:
        raise DeviceMemoryError(
            f"the weights alone take {readable(needed)} on each of {count} device(s), which has"
            f" {readable(here)}: {hint}"
        )


def check_experts(task: train.Task) -> None:
    """See that there is anything to look at.

    Raises:
        ConfigError: the model has no experts.
    """
    if not any("/expert/" in name for name in _names(task.model.shapes)):
        kind = type(task.model.config).__name__
        raise ConfigError(f"model={kind} has no experts here: there is no routing to look at")


def _names(tree: Any) -> list[str]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in found]


def look(
    recipe: Recipe, task: train.Task, params: Params, corpus: Dataset, batches: int, tell: Told
) -> Seen:
    """What experts get to do in the first batches of the data.

    Raises:
        ConfigError: fewer than one batch.
    """
    if batches < 1:
        raise ConfigError(f"it takes at least 1 batch to look at, not {batches}")
    free = make_look(task)
    tight = make_look(task.tight) if task.model.limited else None
    entries: list[Entry] = []
    lost, replayed = 0.0, 0
    where = train.sharding_of(task.layout)
    with feed(corpus.train, 0, where, workers=recipe.data.workers) as feeding:
        for number, batch in enumerate(islice(feeding, batches)):
            key = jax.random.fold_in(jax.random.key(recipe.seed), number)
            entries += _entries(free(params, batch, key), recipe.accumulate, number)
            if tight is not None:
                bounded = _entries(tight(params, batch, key), recipe.accumulate, number)
                missing = sum(layer.overflow for e in bounded for layer in e.layers)
                lost, replayed = lost + missing, replayed + (missing > 0)
            tell(number + 1, batches)
    return Seen(tuple(entries), batches, tight is not None, lost, replayed)


def make_look(task: train.Task) -> Callable[[Params, Batch, PRNGKeyArray], dict[str, Any]]:
    """A jitted function that gives the arrays `load/…` of each microbatch, [A, …]."""
    model = task.model

    def look(params: Params, batch: Batch, key: PRNGKeyArray) -> dict[str, Any]:
        steered = model.unlearned(params)
        weights = joined(cast(model.learned(params), task.precision.reduce), steered)

        def one(part: tuple[Batch, PRNGKeyArray]) -> dict[str, Any]:
            terms = evaluate_loss(task.loss, model, weights, *part)
            return by_layer(dict(terms.loads), steered)

        with task.layout.active():
            keys = jax.random.split(key, task.accumulate)
            return jax.lax.map(one, (split(batch, task.accumulate), keys))

    return jax.jit(look, out_shardings=task.layout.replicated())


def _entries(found: dict[str, Any], microbatches: int, batch: int) -> list[Entry]:
    host = {name: np.asarray(array) for name, array in jax.device_get(found).items()}
    each = [{name: array[a] for name, array in host.items()} for a in range(microbatches)]
    return [Entry(batch * microbatches + a, tuple(layers(values))) for a, values in enumerate(each)]


def rooms(entries: Sequence[Entry]) -> dict[int, float]:
    """The room, in even shares, that no microbatch would have overflowed, by how many share."""
    all_of = [layer.chosen for entry in entries for layer in entry.layers]
    able = [n for n in SHARED if any(len(c) % n == 0 and len(c) > n for c in all_of)]
    return {n: max(imbalance(chosen, n) for chosen in all_of) for n in able}
