"""DeepSeek-V2-Lite: 15.7 B weights, a token uses 2.66 B; 64 experts a layer, six for each token.

Source: DeepSeek-AI 2024, arXiv 2405.04434, appendix B, whose rate, batch and loss these are.

Router. A softmax over all scores, of which the six best count as they are. Pretraining: a balance
loss of 0.001 within each sequence, the only one of the model's: all experts of a layer can lie on
one device.
Fine-tuning: the router learns too, with a small balance loss (0.001) over the whole batch, however
it is split: a microbatch of narrow data is of few subjects, and need not use all experts.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h100:8x8   fsdp=64             12.6 of 59.3 GiB
    recipe    v5p-128    -
    finetune  h100:8     fsdp=8              43.0 of 59.3 GiB
    finetune  v5p-16     -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.models import DeepSeekV2
from jscale.models.gates import Balance
from jscale.models.latent import Latent
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(DeepSeekV2, "lite")
TWIN: dict[str, Any] = dict(
    dim=64, layers=3, heads=4, hidden=64, latent=Latent(32, None, 16, 8, 16)
)


def recipe() -> Recipe:
    """From scratch, on text of your own: 4,096 places, not stretched by YaRN yet."""
    return Recipe(
        name="deepseek_v2_lite",
        model=replace(
            SIZES,
            scaling=None,
            sharpened=0.0,
            longest=4096,
            experts=replace(SIZES.experts, balance=Balance(0.001, scope="sequence")),
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 102,400 tokens at most
            length=4096,
            batch=4608,  # 19 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=4.2e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=300_000,  # 5.7 trillion tokens
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=36,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER deepseek_v2_lite:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="deepseek_v2_lite-finetune",
        model=replace(
            SIZES, experts=replace(SIZES.experts, balance=Balance(0.001, scope="global"))
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl",)),  # yours: {"text": ...} a line, chats as text
            tokenizer=TokenizerFile("release"),  # the folder of the release
            length=4096,
            batch=16,  # 65,536 tokens a step
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
