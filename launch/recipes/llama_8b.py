"""Llama 3 8B from scratch on your own text: a starting point for a pod or a cluster.

Look before you run: `jscale explain llama_8b --devices 256`. Copy it, name your files and your
tokenizer, and train it with `jscale train my_8b.py`.
"""

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.losses import NextToken
from jscale.models import Llama
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="llama_8b",
        model=Llama(
            vocab=128_256,
            dim=4096,
            layers=32,
            heads=32,
            kv_heads=8,
            hidden=14_336,
            rope=500_000.0,
            eps=1e-5,
            remat="full",  # keeps one activation a layer; "dots" is faster where memory allows
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # your tokenizer
            length=8192,
            batch=512,  # 4 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=3e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=250_000,  # one trillion tokens
        loss=NextToken(z_loss=1e-5),
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )
