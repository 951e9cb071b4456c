"""Qwen3-235B-A22B: 235 B weights, a token uses 22.2 B; 128 experts a layer, eight for each.

Source: Yang et al. 2025, arXiv 2505.09388. Its rates and batches are not published.

Router. A softmax over all scores, the eight best made to sum to 1. Pretraining: a balance loss of
0.001 within each microbatch. That is the rows of all devices here, as in its report (arXiv
2501.11873): experts may have their subjects.
Fine-tuning: the router learns too, with a small balance loss (0.001) over the whole batch, however
it is split: a microbatch of narrow data is of few subjects, and need not use all experts.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h100:8x32  fsdp=256             47.4 of 59.3 GiB
    recipe    v5p-512    -
    finetune  h200:8x16  fsdp=128            58.3 of 105.8 GiB
    finetune  v5p-256    -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.models import Qwen3MoE
from jscale.models.gates import Balance
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(Qwen3MoE, "235b-a22b")
TWIN: dict[str, Any] = dict(dim=64, layers=2, heads=4, kv_heads=2, head=16, hidden=32)


def recipe() -> Recipe:
    """From scratch, on text of your own: 4,096 places, as in the first stage of Qwen 3."""
    return Recipe(
        name="qwen3_235b_a22b",
        model=replace(SIZES, experts=replace(SIZES.experts, balance=Balance(0.001))),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 151,936 tokens at most
            length=4096,
            batch=4096,  # 16 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=2e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=500_000,  # 8 trillion tokens
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=8,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER qwen3_235b_a22b:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="qwen3_235b_a22b-finetune",
        model=replace(
            SIZES, experts=replace(SIZES.experts, balance=Balance(0.001, scope="global"))
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl",)),  # yours: {"text": ...} a line, chats as text
            tokenizer=TokenizerFile("release"),  # the folder of the release
            length=8192,
            batch=128,  # 1 M tokens a step
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
