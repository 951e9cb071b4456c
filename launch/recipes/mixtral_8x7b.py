"""Mixtral 8x7B: 46.7 B weights, a token uses 12.9 B; 8 experts a layer, two for each token.

Source: Jiang et al. 2024, arXiv 2401.04088, which does not tell how it was trained: rate and batch
are those of dense models of its class.

Router. A softmax over the two best scores. Pretraining: a balance loss of 0.01 and a z-loss of
0.001 on the router's scores (ST-MoE, arXiv 2202.08906), within each microbatch: here that is the
rows of all devices, many enough for each expert to have its subjects.
Fine-tuning: the router learns too, with a small balance loss (0.001) over the whole batch, however
it is split: a microbatch of narrow data is of few subjects, and need not use all experts.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h100:8x8   fsdp=64             29.4 of 59.3 GiB
    recipe    v5p-128    -
    finetune  h100:8x4   fsdp=32             38.4 of 59.3 GiB
    finetune  v5p-64     -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.models import Mixtral
from jscale.models.gates import Balance
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(Mixtral, "8x7b")
TWIN: dict[str, Any] = dict(dim=64, layers=2, heads=4, kv_heads=2, hidden=32)


def recipe() -> Recipe:
    """From scratch, on text of your own: 1.6 T tokens."""
    return Recipe(
        name="mixtral_8x7b",
        model=replace(SIZES, experts=replace(SIZES.experts, balance=Balance(0.01, z=0.001))),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 32,000 tokens at most
            length=8192,
            batch=512,  # 4 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=3e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=400_000,  # 1.7 trillion tokens
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=8,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER mixtral_8x7b:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="mixtral_8x7b-finetune",
        model=replace(
            SIZES, experts=replace(SIZES.experts, balance=Balance(0.001, scope="global"))
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl",)),  # yours: {"text": ...} a line, chats as text
            tokenizer=TokenizerFile("release"),  # the folder of the release
            length=8192,
            batch=32,  # 0.3 M tokens a step
            heldout=0.01,
        ),
        optimizer=AdamW(peak=1e-5, schedule=Cosine(warmup=0.03), weight_decay=0.0),
        steps=1_000,
        accumulate=1,
        checkpoints=Checkpoints(every=250, keep=2),
        evaluation=Evaluation(every=100, batches=8),
    )


def twin() -> Recipe:
    """`recipe` in small, for eight devices, simulated ones too."""
    return small(recipe(), **TWIN)


def finetune_twin() -> Recipe:
    """`finetune` in small, for eight devices, simulated ones too."""
    return small(finetune(), **TWIN)
