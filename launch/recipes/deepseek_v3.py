"""DeepSeek-V3: 671 B weights, a token uses 37.6 B; 256 experts a layer, eight for each token.

Source: DeepSeek-AI 2024, arXiv 2412.19437, whose rate, batch and losses these are. It foresees one
token more than the next (that block of 11.5 B weights comes on top).

Router. Sigmoids, and a correction that decides who is chosen, not with what weight: after each step
it moves by 0.001 towards experts that were used too little, at no cost to the loss (arXiv
2408.15664). Pretraining: besides, a tiny balance loss (0.0001) within each sequence, against
extremes of one text.
Fine-tuning: the router learns; the correction stays as it was released, found on far more text than
there is here, and a small balance loss (0.001) over the whole batch keeps experts in use.
The release is in FP8, which `jscale import` refuses: begin with weights converted to bfloat16.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h200:8x64  fsdp=64 expert=8    73.5 of 105.8 GiB
    recipe    v5p-1024   -
    finetune  h200:8x64  fsdp=64 expert=8    64.1 of 105.8 GiB
    finetune  v5p-1024   -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.losses import FurtherTokens
from jscale.mesh import MeshShape
from jscale.models import DeepSeekV3
from jscale.models.gates import Balance
from jscale.models.latent import Latent
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(DeepSeekV3, "671b")
TWIN: dict[str, Any] = dict(
    dim=64, layers=3, heads=4, hidden=64, dense=1, latent=Latent(32, 48, 16, 8, 16)
)


def recipe() -> Recipe:
    """From scratch, on text of your own: 4,096 places, not stretched by YaRN yet."""
    return Recipe(
        name="deepseek_v3",
        model=replace(
            SIZES,
            experts=replace(SIZES.experts, balance=Balance(0.0001, scope="sequence", steer=0.001)),
            ahead=1,
            scaling=None,
            sharpened=0.0,
            longest=4096,
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 129,280 tokens at most
            length=4096,
            batch=15360,  # 63 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=2.2e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=235_000,  # 14.8 trillion tokens
        loss=FurtherTokens(share=0.3),
        mesh=MeshShape(fsdp=64, expert=8),
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=30,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER deepseek_v3:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="deepseek_v3-finetune",
        model=replace(
            SIZES,
            experts=replace(SIZES.experts, balance=Balance(0.001, scope="global", steer=0.0)),
            ahead=1,
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl",)),  # yours: {"text": ...} a line, chats as text
            tokenizer=TokenizerFile("release"),  # the folder of the release
            length=4096,
            batch=512,  # 2 M tokens a step
            heldout=0.01,
        ),
        optimizer=AdamW(peak=5e-6, schedule=Cosine(warmup=0.03), weight_decay=0.0),
        steps=1_000,
        loss=FurtherTokens(share=0.1),
        mesh=MeshShape(fsdp=64, expert=8),
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
