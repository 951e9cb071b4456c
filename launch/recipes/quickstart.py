"""A small Llama learns to write Python from the standard library of the Python that runs it.

Needs no download and no account; takes about two minutes on two processor cores. Copy it with
`jscale recipes copy quickstart` and make it yours.
"""

from jscale.checkpoint import Checkpoints
from jscale.data import BytePairs, StandardLibrary, TextData
from jscale.generate import Sampling
from jscale.models import Llama
from jscale.optim import Cosine, Muon
from jscale.recipe import Evaluation, Recipe, Samples

VOCAB = 4096


def recipe() -> Recipe:
    return Recipe(
        name="quickstart",
        model=Llama(
            vocab=VOCAB,
            dim=192,
            layers=4,
            heads=4,
            kv_heads=2,  # two query heads share one key/value head
            hidden=512,
            tied=True,  # one matrix reads and writes tokens: half the weights of a small model
            remat="none",  # small activations: keep them rather than compute them again
        ),
        data=TextData(
            source=StandardLibrary(),  # or TextFiles(("my/*.txt",)), JsonLines, Parquet, ...
            tokenizer=BytePairs(vocab=VOCAB),  # trained on the spot, kept for the next time
            length=128,  # tokens in a row
            batch=8,  # rows in a step
            heldout=0.05,  # of the files: a few of them, to measure on
        ),
        # Muon learns this in half the steps of AdamW.
        optimizer=Muon(peak=6e-3, schedule=Cosine(warmup=0.04)),
        steps=450,
        checkpoints=Checkpoints(every=75, keep=2),
        evaluation=Evaluation(every=75, batches=16),
        samples=Samples(
            prompts=("def", "import"),
            every=150,
            length=64,
            sampling=Sampling(temperature=0.6),  # lower: likelier; higher: more surprising
        ),
    )
