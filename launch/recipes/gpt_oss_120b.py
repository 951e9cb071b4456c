"""gpt-oss-120b: 117 B weights, a token uses 5.71 B; 128 experts a layer, four for each token.

Source: OpenAI 2025, arXiv 2508.10925. Every second layer sees 128 tokens. Its rates and batches are
not published.

Router. A softmax over the four best scores; the router has biases. How the releases were balanced
is not published. Pretraining: a balance loss of 0.01 and a z-loss of 0.001 within each microbatch,
which is the rows of all devices.
Fine-tuning: the router learns too, with a small balance loss (0.001) over the whole batch, however
it is split: a microbatch of narrow data is of few subjects, and need not use all experts.
A release in four bits is unpacked by `jscale import`.

What the compiler says that one device needs (`benchmarks/moe_recipes.py`):

    recipe    h100:8x16  fsdp=16 expert=8    36.6 of 59.3 GiB
    recipe    v5p-256    -
    finetune  h200:8x8   fsdp=8 expert=8     59.0 of 105.8 GiB
    finetune  v5p-128    -
"""

from dataclasses import replace
from typing import Any

from jscale.checkpoint import Checkpoints
from jscale.data import JsonLines, TextData, TokenizerFile
from jscale.launch.released import released
from jscale.launch.twins import small
from jscale.mesh import MeshShape
from jscale.models import GptOss
from jscale.models.gates import Balance
from jscale.models.windows import Windows
from jscale.optim import AdamW, Cosine
from jscale.precision import Precision
from jscale.recipe import Evaluation, Recipe

SIZES = released(GptOss, "120b")
TWIN: dict[str, Any] = dict(
    dim=64, layers=2, heads=4, kv_heads=2, hidden=32, head=16, windows=Windows(32)
)


def recipe() -> Recipe:
    """From scratch, on text of your own: 4,096 places, not stretched by YaRN yet."""
    return Recipe(
        name="gpt_oss_120b",
        model=replace(
            SIZES,
            scaling=None,
            longest=4096,
            experts=replace(SIZES.experts, balance=Balance(0.01, z=0.001)),
        ),
        data=TextData(
            source=JsonLines(("data/*.jsonl.zst",)),  # your files: {"text": ...} a line
            tokenizer=TokenizerFile("data/tokenizer.json"),  # yours, of 201,088 tokens at most
            length=4096,
            batch=2048,  # 8 M tokens a step
            heldout=0.0005,
            workers=4,
        ),
        optimizer=AdamW(peak=3e-4, schedule=Cosine(warmup=2_000), weight_decay=0.1),
        steps=500_000,  # 4 trillion tokens
        mesh=MeshShape(fsdp=16, expert=8),
        precision=Precision(compute="bfloat16"),  # weights, sums and reductions stay float32
        accumulate=16,
        checkpoints=Checkpoints(every=1_000, minutes=30.0, keep=3, keep_every=25_000),
        evaluation=Evaluation(every=1_000, batches=16),
    )


def finetune() -> Recipe:
    """All weights of a release learn on: `jscale import FOLDER gpt_oss_120b:finetune`."""
    begun = recipe()
    return replace(
        begun,
        name="gpt_oss_120b-finetune",
        model=replace(
            SIZES, experts=replace(SIZES.experts, balance=Balance(0.001, scope="global"))
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
        mesh=MeshShape(fsdp=8, expert=8),
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
