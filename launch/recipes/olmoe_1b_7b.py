"""OLMoE-1B-7B: 6.92 B weights, a token uses 1.28 B; 64 experts a layer, eight for each token.

Source: Muennighoff et al. 2024, arXiv 2409.02060, whose rate, batch and losses these are.

Router. A softmax over all scores, of which the eight best count as they are. Pretraining: a balance
loss of 0.01 within each microbatch and a z-loss of 0.001: as the paper has it.
Fine-tuning: the router learns too, with a small balance loss (0.001) over the whole batch, however
it is split: a microbatch of narrow data is of few subjects, and need not use all experts.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h100:8x8   fsdp=64              8.3 of 59.3 GiB
    recipe    v6e-64     fsdp=64              11.7 of 31.2 GiB
    finetune  h100:8x2   fsdp=16             13.4 of 59.3 GiB
    finetune  v6e-16     -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.models import OLMoE
from jscale.models.gates import Balance
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(OLMoE, "1b-7b")
TWIN: dict[str, Any] = dict(dim=64, layers=2, heads=4, kv_heads=2, hidden=32)


def recipe() -> Recipe:
    """From scratch, on text of your own: 5 T tokens, as the paper."""
    return Recipe(
        name="olmoe_1b_7b",
        model=replace(SIZES, experts=replace(SIZES.experts, balance=Balance(0.01, z=0.001))),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 50,304 tokens at most
            length=4096,
            batch=1024,  # 4 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=4e-4, schedule=Cosine(warmup=2_500), weight_decay=0.1),
        steps=1_200_000,  # 5 trillion tokens
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=4,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER olmoe_1b_7b:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="olmoe_1b_7b-finetune",
        model=replace(
            SIZES, experts=replace(SIZES.experts, balance=Balance(0.001, scope="global"))
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl",)),  # yours: {"text": ...} a line, chats as text
            tokenizer=TokenizerFile("release"),  # the folder of the release
            length=4096,
            batch=64,  # 0.3 M tokens a step
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
