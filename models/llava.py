"""LLaVA: a decoder of text that reads images where their tokens stand.

An image goes through CLIP's tower; two layers turn its patches into vectors of the decoder, which
take the places of image tokens.
Source: Liu et al. 2023, arXiv 2304.08485 and 2310.03744; Radford et al. 2021 (CLIP), 2103.00020.
"""

# B batch, T length, I images of a row, H height, W width, C channels, P vectors of an image,
# D model size of the decoder.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.activations import activate, check_activation
from jscale.models.beit3.patches import Patches
from jscale.models.decoder import Output, context_of
from jscale.models.dense import Dense
from jscale.models.feed import Drop, Linear, apart
from jscale.models.initial import SCHEMES
from jscale.models.norms import Layer
from jscale.models.vit import Tower, check_tower


@dataclass(frozen=True)
class CLIPTower:
    """The sizes of CLIP's tower over images.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name.
    """

    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    hidden: int  # size inside the feed-forward
    patches: Patches = Patches(336, 14)  # images and the patches they are cut into
    activation: str = "gelu_quick"  # of the feed-forward, by name: models/activations.py
    eps: float = 1e-5  # of the norms
    drop: Drop = Drop()  # what training drops
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_tower(self)


@dataclass(frozen=True)
class LLaVA:
    """A decoder and a tower over images, whose patches stand at the decoder's image tokens.

    Raises:
        ConfigError: a layer that the tower does not have, or parts of another kind.
    """

    text: Any  # the decoder: Llama(…), or another of its kind
    vision: CLIPTower  # the tower: CLIPTower(1024, 24, 16, 4096)
    image_token: int  # the token at whose places an image's patches stand
    layer: int = -2  # the tower's layer that is read: -1 the last, -2 the one before
    whole: bool = False  # whether the image's own token is read too, before its patches
    activation: str = "gelu"  # between the two layers, by name: models/activations.py
    bias: bool = True  # whether the two layers have one

    def __post_init__(self) -> None:
        check_activation(self.activation)
        if not isinstance(self.text, Dense):
            raise ConfigError(f"LLaVA's text is a decoder such as Llama(…), not {self.text!r:.80}")
        if not 1 <= self.depth <= self.vision.layers:
            raise ConfigError(
                f"layer={self.layer} is none of the tower's {self.vision.layers}: -1 is its last"
            )
        if self.image_token < 0:
            raise ConfigError(f"image_token must be 0 or more, not {self.image_token}")

    @property
    def vocab(self) -> int:
        """Tokens that the decoder tells apart."""
        return self.text.vocab

    @property
    def depth(self) -> int:
        """How many of the tower's blocks an image goes through."""
        return self.layer if self.layer >= 0 else self.vision.layers + 1 + self.layer

    @property
    def places(self) -> int:
        """How many image tokens stand for an image."""
        return self.vision.patches.count + self.whole

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "LLaVANetwork":
        return LLaVANetwork(self, rngs, compute)


class CLIPNetwork(nnx.Module):
    """What `CLIPTower` builds; LLaVA does not read the norm at its end, which releases have."""

    def __init__(self, c: CLIPTower, rngs: nnx.Rngs, compute: DTypeLike):
        self.tower = Tower(c, rngs, compute, bias=False, normed=True)
        self.norm = Layer(c.eps).build(c.dim)


class Projector(nnx.Module):
    """f(x U + b) W + c, from vectors of the tower to those of the decoder."""

    def __init__(self, c: LLaVA, rngs: nnx.Rngs):
        begin = SCHEMES["bert"]
        self.activation = c.activation
        self.up = Linear(dict(embed=c.vision.dim, mlp=c.text.dim), rngs, begin, 1.0, c.bias)
        self.down = Linear(dict(mlp=c.text.dim, embed=c.text.dim), rngs, begin, 1.0, c.bias)

    def __call__(self, x: Float[Array, "B P E"]) -> Float[Array, "B P D"]:
        return self.down(activate(self.activation, constrain(self.up(x), "batch", None, "mlp")))


class LLaVANetwork(nnx.Module):
    """What `LLaVA` builds: a decoder that may be given images."""

    def __init__(self, c: LLaVA, rngs: nnx.Rngs, compute: DTypeLike):
        self.c = c
        self.text: Any = c.text.build(rngs, compute)
        self.vision = CLIPNetwork(c.vision, rngs, compute)
        self.projector = Projector(c, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Any = None,
        images: Float[Array, "B *I H W C"] | None = None,
    ) -> Output:
        """Hidden states of each token from those up to it.

        A row's images stand, one after the other, at its image tokens. Where these are no whole
        number of images, or more than there are, what the row gives is not a number; images beyond
        those that its tokens tell of are not read.
        """
        if images is None:
            return self.text(tokens, positions, segments, cache)
        x = self.placed(tokens, self.pictures(images))
        context = context_of(tokens, positions, segments)
        x, (reports, cache) = self.text.through(x, context, cache)
        told = apart(reports)
        return Output(self.text.norm(x), told.reports, cache, told.penalty, told.loads)

    @jax.named_scope("images")
    def pictures(self, images: Float[Array, "B *I H W C"]) -> Float[Array, "B _ D"]:
        """Vectors of the decoder for each row's images, one image after the other."""
        rows = images.shape[0]
        x = self.vision.tower(images.reshape(-1, *images.shape[-3:]), layers=self.c.depth)
        x = self.projector(x if self.c.whole else x[:, 1:])
        return constrain(x.reshape(rows, -1, x.shape[-1]), "batch", None, "embed")

    def placed(
        self, tokens: Int[Array, "B T"], pictures: Float[Array, "B _ D"]
    ) -> Float[Array, "B T D"]:
        """Vectors of tokens, those of images at the places of image tokens."""
        there = tokens == self.c.image_token
        which = jnp.where(there, jnp.cumsum(there, 1) - 1, 0)
        whole = there.sum(1, keepdims=True) % self.c.places == 0
        which = jnp.where(whole, which, pictures.shape[1])  # none is there: not a number
        seen = jnp.take_along_axis(
            pictures, which[..., None], 1, mode="fill", fill_value=float("nan")
        )
        words = self.text.embed(jnp.where(there, 0, tokens))
        x = jnp.where(there[..., None], seen.astype(words.dtype), words)
        return constrain(x, "batch", "length", "embed")

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The scores of all tokens."""
        return self.text.unembed(hidden)

    def logprobs(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """As `Scoring` says."""
        return self.text.logprobs(hidden, targets, *more)

    def cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` positions."""
        return self.text.cache(batch, length)
