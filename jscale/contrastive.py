"""The objective of CLIP: which text belongs to which image, among all of a batch.

Source: Radford et al. 2021, arXiv 2103.00020; of BEiT-3, Wang et al. 2022, arXiv 2208.10442.
"""

# B batch, H height, W width, C channels, T text tokens, E size of compared vectors.

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jscale.errors import ConfigError
from jscale.losses import Batch, Terms
from jscale.mesh import constrain
from jscale.models.model import Model, Params

FIELDS = ("images", "inputs", "segments")
NEVER = -1e30  # a similarity that is not chosen


@runtime_checkable
class Comparing(Protocol):
    """A network that puts images and texts into one space.

    It gives vectors of length 1 for each, and what multiplies their products.
    """

    def compare(
        self,
        images: Float[Array, "B H W C"],
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, ""]]: ...


@dataclass(frozen=True)
class Contrastive:
    """Cross-entropy of an image's own text among all texts of the batch, and of a text's image.

    A batch has images [B, H, W, C], inputs and segments [B, T]; a row without text counts for
    nothing, neither by itself nor for others. All rows of the batch are compared, on whatever
    devices they lie; with `accumulate`, those of a microbatch. `accuracy` is the part of the images
    whose own text is the nearest.
    """

    reads: ClassVar[tuple[str, ...]] = FIELDS

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        check_batch(batch, "Contrastive()")
        network = model.bind(params, rng)
        if not isinstance(network, Comparing):
            raise ConfigError(
                f"Contrastive() needs a model that compares images and texts, such as"
                f" BEiT3(joint=Joint(256)), not a {type(model.config).__name__}"
            )
        segments = batch["segments"]
        of_images, of_texts, scale = network.compare(batch["images"], batch["inputs"], segments)
        real = (segments > 0).any(1)
        losses, right = compared(of_images, of_texts, scale, real)
        weights = real.astype(jnp.float32)
        count = weights.sum()
        metrics = {
            "accuracy": ((right * weights).sum(), count),
            "temperature": (count / scale, count),
        }
        return Terms(losses, weights, metrics)


def check_batch(batch: Batch, who: str) -> None:
    """Raises ConfigError unless a batch is of images with text."""
    if missing := [name for name in FIELDS if name not in batch]:
        raise ConfigError(
            f"{who} learns from images with text, a batch with {', '.join(FIELDS)}: {missing[0]} is"
            " missing; data=CaptionedImages(…) has them"
        )


@jax.named_scope("contrast")
def compared(
    of_images: Float[Array, "B E"],
    of_texts: Float[Array, "B E"],
    scale: Float[Array, ""],
    real: Array,
) -> tuple[Float[Array, "B"], Array]:
    """The loss of each row, and whether an image's own text is the nearest of those of `real` rows.

    Each device holds the vectors of all texts, and the products of its own images with them.
    """
    of_images = constrain(of_images, "batch", None)
    of_texts = constrain(of_texts, None, None)
    near = scale * jnp.einsum("ie,te->it", of_images, of_texts, precision="highest")
    near = constrain(near, "batch", None)
    by_image, by_text = jnp.where(real, near, NEVER), jnp.where(real[:, None], near, NEVER)
    own = jnp.diagonal(near)
    both = jax.nn.logsumexp(by_image, 1) + jax.nn.logsumexp(by_text, 0)
    return both / 2 - own, own >= by_image.max(1)  # of texts that are the same, any is right
