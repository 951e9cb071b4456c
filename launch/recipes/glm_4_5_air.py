"""GLM-4.5-Air: 107 B weights, a token uses 13.4 B; 128 experts a layer, eight for each token.

Source: GLM-4.5 Team 2025, arXiv 2508.06471, whose batch and losses these are; it was trained by
Muon, here by AdamW. It foresees one token more than the next (that block of 2.4 B weights comes on
top).

Router. Sigmoids, and a correction that decides who is chosen, not with what weight: after each step
it moves by 0.001 towards experts that were used too little, at no cost to the loss (arXiv
2408.15664). Pretraining: besides, a tiny balance loss (0.0001) within each sequence, against
extremes of one text.
Fine-tuning: the router learns; the correction stays as it was released, found on far more text than
there is here, and a small balance loss (0.001) over the whole batch keeps experts in use.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h100:8x16  fsdp=128            52.7 of 59.3 GiB
    recipe    v5p-256    -
    finetune  h200:8x8   fsdp=64             65.5 of 105.8 GiB
    finetune  v5p-128    -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.losses import FurtherTokens
from jscale.models import GLM4MoE
from jscale.models.gates import Balance
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(GLM4MoE, "air")
TWIN: dict[str, Any] = dict(dim=64, layers=3, heads=4, kv_heads=2, hidden=64, head=16, turned=8)


def recipe() -> Recipe:
    """From scratch, on text of your own: 4,096 places, as in its first stage."""
    return Recipe(
        name="glm_4_5_air",
        model=replace(
            SIZES,
            experts=replace(SIZES.experts, balance=Balance(0.0001, scope="sequence", steer=0.001)),
            ahead=1,
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 151,552 tokens at most
            length=4096,
            batch=4096,  # 16 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=2.5e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=1_000_000,  # 17 trillion tokens
        loss=FurtherTokens(share=0.3),
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=16,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER glm_4_5_air:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="glm_4_5_air-finetune",
        model=replace(
            SIZES,
            experts=replace(SIZES.experts, balance=Balance(0.001, scope="global", steer=0.0)),
            ahead=1,
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl",)),  # yours: {"text": ...} a line, chats as text
            tokenizer=TokenizerFile("release"),  # the folder of the release
            length=8192,
            batch=64,  # 0.5 M tokens a step
            heldout=0.01,
        ),
        optimizer=AdamW(peak=1e-5, schedule=Cosine(warmup=0.03), weight_decay=0.0),
        steps=1_000,
        loss=FurtherTokens(share=0.1),
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
