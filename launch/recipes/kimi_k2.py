"""Kimi-K2: 1.03 T weights, a token uses 32.9 B; 384 experts a layer, eight for each token.

Source: Kimi Team 2025, arXiv 2507.20534: a DeepSeek-V3 with more experts, fewer heads and no groups
of experts. Rate and batch are the paper's; it was trained by MuonClip, here by AdamW.

Router. Sigmoids, and a correction that decides who is chosen, not with what weight: after each step
it moves by 0.001 towards experts that were used too little, at no cost to the loss (arXiv
2408.15664). Pretraining: besides, a tiny balance loss (0.0001) within each sequence, against
extremes of one text.
Fine-tuning: the router learns; the correction stays as it was released, found on far more text than
there is here, and a small balance loss (0.001) over the whole batch keeps experts in use.
The release is in FP8, which `jscale import` refuses: begin with weights converted to bfloat16.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h200:8x64  fsdp=64 expert=8    79.0 of 105.8 GiB
    recipe    v5p-1024   -
    finetune  h200:8x64  fsdp=64 expert=8    73.3 of 105.8 GiB
    finetune  v5p-1024   -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.mesh import MeshShape
from jscale.models import DeepSeekV3
from jscale.models.gates import Balance, TopK
from jscale.models.latent import Latent
from jscale.models.rope_scaling import YaRN
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

V3 = released(DeepSeekV3, "671b")
CHOICE = TopK(8, "sigmoid", scale=2.827, corrected=True)
SIZES = replace(
    V3,
    vocab=163_840,
    heads=64,
    dense=1,
    experts=replace(V3.experts, count=384, choice=CHOICE),
    rope=50_000.0,
    scaling=YaRN(32.0, original=4096, attention=1.0, fast=1.0, slow=1.0),
    longest=131_072,
)
TWIN: dict[str, Any] = dict(
    dim=64, layers=3, heads=4, hidden=64, dense=1, latent=Latent(32, 48, 16, 8, 16)
)


def recipe() -> Recipe:
    """From scratch, on text of your own: 4,096 places, not stretched by YaRN yet."""
    return Recipe(
        name="kimi_k2",
        model=replace(
            SIZES,
            experts=replace(SIZES.experts, balance=Balance(0.0001, scope="sequence", steer=0.001)),
            scaling=None,
            sharpened=0.0,
            longest=4096,
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 163,840 tokens at most
            length=4096,
            batch=16384,  # 67 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=2e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=230_000,  # 15.5 trillion tokens
        mesh=MeshShape(fsdp=64, expert=8),
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=32,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER kimi_k2:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="kimi_k2-finetune",
        model=replace(
            SIZES,
            experts=replace(SIZES.experts, balance=Balance(0.001, scope="global", steer=0.0)),
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
