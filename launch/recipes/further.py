"""A released model goes on learning, from text at hand: what `jscale import FOLDER` begins.

`jscale import` puts the release's model and tokenizer in place of the small ones here. For your own
text: `data.source='TextFiles(("my/*.txt",))'`, or a copy of this file.
"""

from jscale.checkpoint import Checkpoints
from jscale.data import Bytes, StandardLibrary, TextData
from jscale.models import Llama
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="further",
        model=Llama(vocab=259, dim=64, layers=2, heads=4, kv_heads=2, hidden=128),
        data=TextData(
            source=StandardLibrary(),  # or TextFiles(("my/*.txt",)), JsonLines, ...
            tokenizer=Bytes(),
            length=512,  # tokens in a row
            batch=8,  # rows in a step
            heldout=0.05,  # of the files: a few of them, to measure on
        ),
        optimizer=AdamW(peak=2e-5, schedule=Cosine(warmup=0.03)),  # gentle: it has learned already
        steps=200,
        checkpoints=Checkpoints(every=100, keep=2),
        evaluation=Evaluation(every=50, batches=8),
    )
