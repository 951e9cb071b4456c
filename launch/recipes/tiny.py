"""The smallest whole run: bytes of a few texts, a model of 30,000 weights, some seconds.

For trying things out: a new mesh, a new model, a new optimizer.
"""

from jscale.checkpoint import Checkpoints
from jscale.data import Bytes, TextData, Texts
from jscale.models import Llama
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe, Samples

VERSES = tuple(f"{n} green bottles hanging on the wall\n" * 3 for n in range(40))


def recipe() -> Recipe:
    return Recipe(
        name="tiny",
        model=Llama(vocab=259, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none"),
        data=TextData(Texts(VERSES), Bytes(), length=32, batch=8, heldout=0.1),
        optimizer=AdamW(peak=1e-2, schedule=Cosine(warmup=0.05)),
        steps=100,
        checkpoints=Checkpoints(every=50, keep=2),
        evaluation=Evaluation(every=50, batches=2),
        samples=Samples(prompts=("7 green",), every=100, length=32),
    )
