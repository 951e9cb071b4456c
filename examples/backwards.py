"""A recipe for an encoder-decoder: it reads a word and writes it backwards.

It learns from pairs, here of made-up words: 150 steps, half a minute on a laptop.

jscale train examples/backwards.py
jscale generate runs/backwards --prompt stressed --prompt drawer --temperature 0
"""

import random

from jscale.data import Bytes, PairData, Pairs
from jscale.generate import Sampling
from jscale.given_source import GivenSource
from jscale.models import EncoderDecoder
from jscale.models.feed import MLP
from jscale.models.positions import RelativeBias
from jscale.models.residual import PreNorm
from jscale.optim import AdamW
from jscale.recipe import Evaluation, Recipe, Samples


def words(count: int) -> tuple[str, ...]:
    """Different words of two to eight letters, always the same ones."""
    draw = random.Random(0)
    made = ("".join(draw.choices("adeinorstuvw", k=draw.randint(2, 8))) for _ in range(count))
    return tuple(dict.fromkeys(made))


def recipe() -> Recipe:
    return Recipe(
        name="backwards",
        model=EncoderDecoder(
            vocab=260,
            dim=64,
            layers=(1, 1),
            heads=4,
            feed=MLP(128),
            residual=PreNorm(),
            positions=(RelativeBias(16, 32),),
        ),
        data=PairData(
            Pairs(tuple((word, word[::-1]) for word in words(4000))),
            Bytes(),
            length=32,
            batch=32,
            heldout=0.05,
        ),
        loss=GivenSource(),
        optimizer=AdamW(peak=1e-2),
        steps=150,
        evaluation=Evaluation(every=50),
        samples=Samples(("stressed", "drawer"), every=50, length=12, sampling=Sampling(0.0)),
    )
