"""A recipe for a RetNet: it trains as attention does, and generates with a memory of fixed size.

jscale train examples/retnet.py
jscale generate runs/retnet --prompt "def "
"""

from jscale.data import Bytes, StandardLibrary, TextData
from jscale.models import RetNet
from jscale.models.feed import GLU
from jscale.optim import AdamW
from jscale.recipe import Recipe


def recipe() -> Recipe:
    return Recipe(
        name="retnet",
        model=RetNet(vocab=260, dim=64, value=128, heads=4, layers=2, feed=GLU(128, "swish")),
        data=TextData(StandardLibrary(), Bytes(), length=64, batch=8, heldout=0.01),
        optimizer=AdamW(peak=3e-3),
        steps=40,
    )
