"""The objective of image classification."""

# B batch, H height, W width, C channels, K classes.

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jscale.errors import ConfigError
from jscale.losses import Batch, Terms
from jscale.models.decoder import logprobs
from jscale.models.model import Model, Params


@runtime_checkable
class Classifying(Protocol):
    """A network that scores the classes of images."""

    def classify(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]: ...


@dataclass(frozen=True)
class ImageClasses:
    """Cross-entropy of an image's class, −log p(class).

    A batch has images [B, H, W, C] and labels [B], numbers of classes; a row whose label is
    negative counts for nothing, and one whose class the network does not have is not a number.
    `smoothing` ε takes (1 − ε) · class + ε / K as the target. `accuracy` is how often the class is
    the likeliest.

    Raises:
        ConfigError: `smoothing` that is not from 0 to below 1; when called, another batch, or a
            network without classes.
    """

    reads: ClassVar[tuple[str, ...]] = ("images", "labels")

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing must be from 0 to below 1, not {self.smoothing}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        if missing := [name for name in self.reads if name not in batch]:
            raise ConfigError(
                f"ImageClasses() learns from images with labels: {missing[0]} is missing;"
                " data=LabelledImages(…) has them"
            )
        network = model.bind(params, rng)
        if not isinstance(network, Classifying):
            raise ConfigError(
                "ImageClasses() needs a model that tells classes, such as ViT(classes=10), not a"
                f" {type(model.config).__name__}"
            )
        scores, labels = network.classify(batch["images"]), batch["labels"]
        logp, _ = logprobs(scores[:, None], labels[:, None], self.smoothing)
        logp = jnp.where(labels < scores.shape[-1], logp[:, 0], jnp.nan)
        weights = (labels >= 0).astype(jnp.float32)
        right = (scores.argmax(-1) == labels) * weights
        return Terms(-logp, weights, {"accuracy": (right.sum(), weights.sum())})
