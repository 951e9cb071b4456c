"""A ViT learns to tell shapes: squares, circles, triangles and crosses, drawn for it.

    jscale train examples/image_classes.py

`accuracy` is how often it is right on images of colours, sizes and places that it has not seen
together; a guess is right once in four.
"""

from jscale.data import Bytes, LabelledImages, Shapes
from jscale.image_classes import ImageClasses
from jscale.models import ViT
from jscale.models.beit3 import Patches
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="image-classes",
        model=ViT(64, 2, 4, 128, Patches(24, 4), classes=4, remat="none"),
        data=LabelledImages(Shapes(24), Bytes(), length=64, batch=32),
        loss=ImageClasses(),
        optimizer=AdamW(peak=2e-3, schedule=Cosine(warmup=20)),
        steps=600,
        evaluation=Evaluation(every=200, batches=4),
    )
