"""Images as rows of patches, and their embedding."""

# B batch, H height, W width, C channels, P patches, X numbers of one, D model size.

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jscale.errors import ConfigError
from jscale.models.initial import Fans, Scheme, named
from jscale.models.layers import project


@dataclass(frozen=True)
class Patches:
    """Square images that are cut into square patches.

    Raises:
        ConfigError: a size below 1, or an image that is no whole number of patches wide.
    """

    image: int = 224  # height and width of an image
    size: int = 16  # height and width of a patch
    channels: int = 3  # numbers of a pixel

    def __post_init__(self) -> None:
        for name in ("image", "size", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"patches.{name} must be at least 1, not {getattr(self, name)}")
        if self.image % self.size:
            raise ConfigError(
                f"patches.image={self.image} must be a multiple of patches.size={self.size}"
            )

    @property
    def count(self) -> int:
        """Patches of an image."""
        return (self.image // self.size) ** 2

    @property
    def numbers(self) -> int:
        """Numbers of a patch."""
        return self.size**2 * self.channels

    def cut(self, images: Float[Array, "B H W C"]) -> Float[Array, "B P X"]:
        """Patches row by row, and in each its pixels row by row.

        Raises:
            ConfigError: images of another size.
        """
        wanted = (self.image, self.image, self.channels)
        if images.shape[1:] != wanted:
            raise ConfigError(
                f"images of {images.shape[1:]} (height, width, channels) are given to a network for"
                f" {wanted}: give the model patches=Patches({images.shape[1]}, …)"
            )
        B, side = images.shape[0], self.image // self.size
        grid = images.reshape(B, side, self.size, side, self.size, self.channels)
        return grid.transpose(0, 1, 3, 2, 4, 5).reshape(B, self.count, self.numbers)


class PatchEmbed(nnx.Module):
    """A vector for the image as a whole, and one for each patch; hidden patches have one of theirs.

    One product for all patches is the convolution with a stride as wide as its kernel.
    """

    def __init__(self, c: Patches, dim: int, rngs: nnx.Rngs, scheme: Scheme, compute: DTypeLike):
        self.c, self.compute = c, jnp.dtype(compute)
        fans = Fans(c.numbers, dim)
        kernel = scheme.matrix(rngs.params(), (c.numbers, dim), fans)
        self.kernel = named(kernel, None, "embed")
        self.bias = named(scheme.bias(rngs.params(), (dim,), fans), "scale")
        self.mask = named(jnp.zeros(dim), "scale")
        self.first = named(jnp.zeros(dim), "scale")

    @jax.named_scope("embed")
    def __call__(
        self, images: Float[Array, "B H W C"], masked: Bool[Array, "B P"] | None = None
    ) -> Float[Array, "B Q D"]:
        """Vectors of images, 1 + P each.

        Raises:
            ConfigError: images of another size, or a mask for another number of patches.
        """
        x = project("bpx,xd->bpd", self.c.cut(images).astype(self.compute), self.kernel[...])
        x = x + self.bias[...].astype(x.dtype)
        if masked is not None:
            if masked.shape[1] != self.c.count:
                raise ConfigError(
                    f"a mask of {masked.shape[1]} patches is given for images of {self.c.count}"
                )
            x = jnp.where(masked[..., None], self.mask[...].astype(x.dtype), x)
        first = jnp.broadcast_to(self.first[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        return jnp.concatenate([first, x], 1)
