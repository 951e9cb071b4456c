"""The objective of a decoder that reads images: the next token of a text, given images and text."""

# B batch, I images of a row, H height, W width, C channels.

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import PRNGKeyArray

from jscale.errors import ConfigError
from jscale.losses import Batch, NextToken, Terms
from jscale.models.decoder import Seeing
from jscale.models.model import Model, Params


@dataclass(frozen=True)
class ShownText:
    """`NextToken` of rows with images: a batch has images [B, H, W, C], or [B, I, H, W, C].

    Raises:
        ConfigError: a negative `z_loss`; when called, a batch without images, or a network that
            reads none.
    """

    reads: ClassVar[tuple[str, ...]] = ("images", *NextToken.reads)

    z_loss: float = 0.0  # weight of log²Z, which keeps scores from drifting

    def __post_init__(self) -> None:
        NextToken(self.z_loss)

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        if missing := [name for name in self.reads if name not in batch]:
            raise ConfigError(
                f"ShownText() learns from text with images: {missing[0]} is missing;"
                " data=ShownImages(…) has them"
            )
        network: Any = model.bind(params, rng)
        if not isinstance(network, Seeing):
            raise ConfigError(
                "ShownText() needs a decoder that reads images, such as LLaVA(…), not a"
                f" {type(model.config).__name__}"
            )
        rows = batch["inputs"], batch.get("positions"), batch.get("segments")
        out = network(*rows, None, batch["images"])
        return NextToken(self.z_loss).terms(network, out, batch)
