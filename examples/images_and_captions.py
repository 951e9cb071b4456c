"""Images and their captions: BEiT-3 learns which belong together, on images that are drawn for it.

    jscale train examples/images_and_captions.py

Held out are captions, and so all their images. `accuracy` is the part of the images whose own
caption is found among those of a batch of 32 that no training step has seen; a guess finds 3 in
100. The same network learns by hiding tokens and patches:

    jscale train examples/images_and_captions.py:masked
"""

from dataclasses import replace

from jscale.contrastive import Contrastive
from jscale.data import BytePairs, CaptionedImages, Shapes
from jscale.masked_image_text import MaskedImageText
from jscale.masked_tokens import MaskedTokens
from jscale.models import BEiT3
from jscale.models.beit3 import Joint, Patches, Pixels
from jscale.models.feed import MLP
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="images-and-captions",
        model=BEiT3(
            vocab=384,
            dim=64,
            layers=2,
            heads=4,
            feed=MLP(128),
            patches=Patches(24, 6),  # 16 patches of 6 by 6 pixels
            joint=Joint(32),
            pixels=Pixels(),
            init="paper",
            remat="none",
        ),
        data=CaptionedImages(Shapes(24), BytePairs(384), length=12, batch=32),
        optimizer=AdamW(peak=2e-3, schedule=Cosine(warmup=20)),
        steps=200,
        loss=Contrastive(),
        evaluation=Evaluation(every=100, batches=4),
    )


def masked() -> Recipe:
    unused = 383  # a token that no caption has
    loss = MaskedImageText(MaskedTokens(mask_token=unused, rate=0.3))
    return replace(recipe(), name="masked-images-and-captions", loss=loss)
