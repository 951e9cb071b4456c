"""What objectives ask of BEiT-3 besides the scores of tokens: vectors to compare, pixels."""

# B batch, P image tokens, T text tokens, D model size, E size of compared vectors.

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.models.beit3.patches import Patches
from jscale.models.initial import Fans, Scheme, named
from jscale.models.layers import project

HOTTEST = 100.0  # the largest factor of similarities, as in CLIP


@dataclass(frozen=True)
class Joint:
    """One space in which images and texts are compared, at a temperature that is learned.

    Source: Radford et al. 2021 (CLIP), arXiv 2103.00020.

    Raises:
        ConfigError: a size below 1, or a temperature that is not from 0.01.
    """

    dim: int  # size of the compared vectors
    temperature: float = 0.07  # that similarities are divided by at first

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"joint.dim must be at least 1, not {self.dim}")
        if not 1 / HOTTEST <= self.temperature:
            raise ConfigError(
                f"joint.temperature must be at least {1 / HOTTEST}, not {self.temperature}"
            )


class Compared(nnx.Module):
    """What `Joint` builds."""

    def __init__(self, c: Joint, dim: int, rngs: nnx.Rngs, scheme: Scheme):
        make = lambda: scheme.matrix(rngs.params(), (dim, c.dim), Fans(dim, c.dim))
        self.image = named(make(), "embed", None)
        self.text = named(make(), "embed", None)
        self.log_scale = named(jnp.asarray([-math.log(c.temperature)]), "scale")

    @property
    def scale(self) -> Float[Array, ""]:
        """What similarities are multiplied by: 1 / temperature, at most 100."""
        return jnp.minimum(jnp.exp(self.log_scale[0].astype(jnp.float32)), HOTTEST)

    def of_images(self, hidden: Float[Array, "B P D"]) -> Float[Array, "B E"]:
        """Vectors of length 1 from the image's own token, in float32."""
        return _unit(project("bd,de->be", hidden[:, 0], self.image[...]))

    def of_texts(
        self, hidden: Float[Array, "B T D"], segments: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B E"]:
        """Vectors of length 1 from the mean over a text's tokens, in float32."""
        seen = jnp.ones(hidden.shape[:2], jnp.float32)
        seen = seen if segments is None else (segments > 0).astype(jnp.float32)
        share = seen / jnp.maximum(seen.sum(1, keepdims=True), 1.0)
        mean = jnp.einsum("btd,bt->bd", hidden, share.astype(hidden.dtype))
        return _unit(project("bd,de->be", mean, self.text[...]))


def _unit(x: Array) -> Float[Array, "B E"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


@dataclass(frozen=True)
class Pixels:
    """The pixels of patches, guessed by one matrix. Source: He et al. 2021 (MAE), 2111.06377."""

    def build(self, patches: Patches, dim: int, rngs: nnx.Rngs, scheme: Scheme) -> Any:
        return Painted(patches, dim, rngs, scheme)


class Painted(nnx.Module):
    """What `Pixels` builds."""

    def __init__(self, patches: Patches, dim: int, rngs: nnx.Rngs, scheme: Scheme):
        fans = Fans(dim, patches.numbers)
        self.kernel = named(scheme.matrix(rngs.params(), (dim, fans.out), fans), "embed", None)
        self.bias = named(scheme.bias(rngs.params(), (fans.out,), fans), "scale")

    def __call__(self, hidden: Float[Array, "B P D"]) -> Float[Array, "B P X"]:
        """The numbers of each patch from its hidden state."""
        y = project("bpd,dx->bpx", hidden, self.kernel[...])
        return y + self.bias[...].astype(y.dtype)
