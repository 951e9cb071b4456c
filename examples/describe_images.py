"""A small LLaVA learns to say what an image shows, on images that are drawn for it.

    jscale train examples/describe_images.py

Held out are captions, and so all their images: the held-out loss is on combinations of colour,
shape, size and place that it has not seen. What a trained one says of an image:

    generate(model, params, Shown([[UNUSED] * model.config.places + [bos]], images), length=12)
"""

from jscale.data import BytePairs, Shapes, ShownImages
from jscale.models import Llama, LLaVA
from jscale.models.beit3 import Patches
from jscale.models.llava import CLIPTower
from jscale.optim import AdamW, Cosine
from jscale.recipe import Evaluation, Recipe
from jscale.shown_text import ShownText

UNUSED = 383  # a token that no caption has


def recipe() -> Recipe:
    model = LLaVA(
        text=Llama(vocab=384, dim=64, layers=2, heads=4, kv_heads=2, hidden=128, remat="none"),
        vision=CLIPTower(64, 3, 4, 128, Patches(24, 6), remat="none"),
        image_token=UNUSED,
    )
    return Recipe(
        name="describe-images",
        model=model,
        data=ShownImages(
            *(Shapes(24), BytePairs(384)),
            length=12,
            batch=32,
            image_token=UNUSED,
            places=model.places,
        ),
        loss=ShownText(),
        optimizer=AdamW(peak=2e-3, schedule=Cosine(warmup=20)),
        steps=300,
        evaluation=Evaluation(every=100, batches=4),
    )
