"""A small language model of your own text: give it a folder.

    jscale train examples/train_your_own_text.py 'data.source.paths=("my_texts/**/*.txt",)'

The paths are read from the folder in which the command is run. A few megabytes of text are enough
to see it learn; more text and a deeper model make it better.
"""

from jscale.checkpoint import Checkpoints
from jscale.data import BytePairs, TextData, TextFiles
from jscale.models import Llama
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe, Samples

VOCAB = 4096  # tokens, learned from your text


def recipe() -> Recipe:
    return Recipe(
        name="my-text",  # the run lives in runs/my-text
        model=Llama.of_depth(4, vocab=VOCAB, tied=True, remat="none"),
        data=TextData(
            source=TextFiles(("my_texts/**/*.txt",)),  # each file is a document
            tokenizer=BytePairs(VOCAB),
            length=256,  # tokens in a row
            batch=8,  # rows in a step
            heldout=0.05,  # of the files, to measure on; 0.0 when there is only one
        ),
        optimizer=AdamW(peak=2e-3, schedule=Cosine(warmup=50)),
        steps=1000,
        checkpoints=Checkpoints(every=100),
        evaluation=Evaluation(every=100),
        samples=Samples(prompts=("The ",), every=100, length=64),
    )
