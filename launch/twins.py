"""A large recipe in small: the same kinds of layers, router, loss and optimizer, to try at once."""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import Bytes, StandardLibrary, TextData
from jscale.mesh import MeshShape
from jscale.metrics import Logging
from jscale.models.gates import Limit
from jscale.models.sparse import Experts
from jscale.optim import Constant
from jscale.recipe import Evaluation, Recipe

VOCAB = 260  # the 259 tokens of `Bytes`, and one more so that two devices can share them
MESH = MeshShape(fsdp=2, expert=2, tensor=2)
ROWS = 8  # at a time
STEPS = 5


def small(whole: Recipe, **sizes: Any) -> Recipe:
    """`whole` with a model of other `sizes` and few experts, for eight devices, simulated ones too.

    It learns from bytes of Python's own library, a few steps, at a rate that shows at once whether
    it learns. Two microbatches stand for any number above one.
    """
    accumulate = min(whole.accumulate, 2)
    model: Any = whole.model
    optimizer: Any = whole.optimizer
    return replace(
        whole,
        name=f"{whole.name}-twin",
        model=replace(model, vocab=VOCAB, experts=few(model.experts), **sizes),
        data=TextData(StandardLibrary(), Bytes(), length=64, batch=ROWS * accumulate, heldout=0.05),
        optimizer=replace(optimizer, peak=1e-2, schedule=Constant()),
        steps=STEPS,
        mesh=MESH,
        accumulate=accumulate,
        checkpoints=Checkpoints(every=STEPS),
        evaluation=Evaluation(every=STEPS, batches=1),
        logging=Logging(every=1),
    )


def few(experts: Experts, count: int = 8, hidden: int = 32) -> Experts:
    """Few experts, chosen, weighted and balanced as these are: two for each token."""
    choice: Any = experts.choice
    shared = experts.shared
    limit = None if choice.limit is None else Limit(4, 2, min(choice.limit.best, 2))
    return replace(
        experts,
        count=count,
        choice=replace(choice, choices=2, limit=limit),
        hidden=hidden,
        shared=None if shared is None else replace(shared, hidden=hidden),
    )
