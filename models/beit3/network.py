"""BEiT-3's config and network: images, text, or both through one stack of blocks."""

# B batch, H height, W width, C channels, P patches, T text tokens, S all tokens, D model size,
# V vocabulary.

import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.mesh.layout import current
from jscale.models.beit3.block import Block, keys
from jscale.models.beit3.heads import Compared, Joint, Painted, Pixels
from jscale.models.beit3.patches import PatchEmbed, Patches
from jscale.models.beit3.ways import Halves, Ways
from jscale.models.decoder import places_of
from jscale.models.draws import Drawing, dropout, stream
from jscale.models.feed import GLU, MLP, Drop, Feed
from jscale.models.initial import Scheme
from jscale.models.layers import Stack
from jscale.models.norms import Layer, Norm
from jscale.models.positions import Embedded, Learned, Position
from jscale.models.residual import Residual, Stage, SubLN
from jscale.models.transformer.attend import Scene
from jscale.models.transformer.config import Embedding, body_of, unblocked
from jscale.models.transformer.head import Head, Headed, Plain
from jscale.models.transformer.network import check_vocab, embed_of
from jscale.pallas_kernels.attention import PLAIN, Scores


@dataclass(frozen=True)
class BEiT3:
    """A bidirectional Transformer over images, text or both; each kind has its own weights.

    All tokens attend to all; projections, norms and feed-forwards are there twice.
    Source: Wang et al. 2022, arXiv 2208.10442.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    feed: Feed  # the feed-forward: MLP(3072) or GLU(2048)
    patches: Patches = Patches()  # images and the patches they are cut into
    residual: Residual = SubLN()  # PreNorm(), PostNorm(), DeepNorm() or SubLN()
    positions: tuple[Position, ...] = (Learned(),)  # how it knows where tokens stand, of each kind
    norm: Norm = Layer()  # Layer() or RMS()
    drop: Drop = Drop()  # what training drops
    head: Head | None = Plain()  # how it scores tokens: Plain(), Masked(), or not
    joint: Joint | None = None  # vectors of images and texts to compare: Joint(256), or none
    pixels: Pixels | None = None  # how it guesses hidden patches: Pixels(), or not
    init: str = "torchscale"  # how weights begin: torchscale, paper or bert
    embedding: Embedding = Embedding()  # what happens to embeddings before the first block
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_vocab(self.vocab)
        body_of(self).check(self.layers)
        if not isinstance(self.feed, MLP | GLU):
            raise ConfigError(f"BEiT3's feed is MLP(…) or GLU(…), not {self.feed!r:.80}")
        if body_of(self) != unblocked(body_of(self)):
            raise ConfigError("XPos(blockwise=…) is causal: BEiT3 sees all of an image and a text")

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "BEiT3Network":
        return BEiT3Network(self, rngs, compute)


class Places(Ways):
    """Vectors of positions, which each kind of tokens counts from 0."""

    def __init__(self, position: Embedded, c: BEiT3, rngs: nnx.Rngs, scheme: Scheme):
        of_image = position
        if isinstance(position, Learned):
            of_image = replace(position, length=1 + c.patches.count)
        self.image = of_image.build(c.dim, rngs, scheme)
        self.text = position.build(c.dim, rngs, scheme)


class BEiT3Network(Headed, Drawing):
    """What `BEiT3` builds."""

    def __init__(self, c: BEiT3, rngs: nnx.Rngs, compute: DTypeLike):
        body, stage = body_of(c), Stage(encoder=c.layers)
        parts = body.parts(stage)
        scheme = parts.style.scheme
        self.layers, self.drop = c.layers, c.drop
        self.scale = math.sqrt(c.dim) if c.embedding.scaled else 1.0
        self.embed = embed_of(c.vocab, c.dim, rngs, compute, scheme)
        self.patches = PatchEmbed(c.patches, c.dim, rngs, scheme, compute)
        self.places = nnx.List([Places(p, c, rngs, scheme) for p in body.embedded])
        self.biases = nnx.List([p.build(c.heads, rngs, scheme) for p in body.biased])
        norms = lambda wanted: Ways(lambda: c.norm.build(c.dim)) if wanted else None
        self.embed_norm = norms(c.embedding.norm)
        self.blocks = Stack(lambda rngs: Block(parts, c.feed, rngs), c.layers, rngs, c.remat)
        self.norm = norms(c.residual.before)
        self.head = None if c.head is None else c.head.build(c.vocab, c.dim, rngs, (scheme, c.norm))
        self.joint = None if c.joint is None else Compared(c.joint, c.dim, rngs, scheme)
        self.pixels = None if c.pixels is None else Painted(c.patches, c.dim, rngs, scheme)

    def __call__(
        self,
        tokens: Int[Array, "B T"] | None = None,
        images: Float[Array, "B H W C"] | None = None,
        masked: Bool[Array, "B P"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Halves:
        """Hidden states of images [B, 1 + P, D], their own token first, and of text [B, T, D].

        `masked` patches are hidden. Text of segment 0 is padding, on either side; an image sees
        text of segment 1.

        Raises:
            ConfigError: neither is given, or what belongs to one without it.
        """
        self._check(tokens, images, masked, segments)
        image = None if images is None else self.patches(images, masked)
        x = Halves(image, None if tokens is None else self.embed(tokens))
        where = places(x, segments)
        scene = self._scene(x, where, segments)
        x, _ = self.blocks(self._embedded(x, where), scene, self.drop.paths(self.layers))
        return x if self.norm is None else self.norm(x)

    def _check(self, tokens: Any, images: Any, masked: Any, segments: Any) -> None:
        if tokens is None and images is None:
            raise ConfigError("BEiT3 reads tokens, images or both: neither is given")
        for name, given, what, there in (
            ("masked", masked, "images", images),
            ("segments", segments, "tokens", tokens),
        ):
            if given is not None and there is None:
                raise ConfigError(f"{name} is of {what}, and none are given")
        layout = current()
        if layout is not None and layout.length_ways > 1:
            raise ConfigError(
                f"BEiT3's rows of image and text are not split: the mesh has {layout.length_ways}"
                " ways for a sequence and must have 1 (context=1)"
            )

    def _embedded(self, x: Halves, where: Halves) -> Halves:
        if self.scale != 1.0:
            x = x.map(lambda x: x * jnp.asarray(self.scale, x.dtype))
        for each in self.places:
            x = x.map(lambda x, at, layer: x + layer(at).astype(x.dtype), where, each.both)
        x = x if self.embed_norm is None else self.embed_norm(x)
        key = stream(self.key, "embed")
        x = x.map(lambda x, key: dropout(x, self.drop.units, key), keys(key))
        return x.map(lambda x: constrain(x, "batch", "length", "embed"))

    def _scene(self, x: Halves, where: Halves, segments: Int[Array, "B T"] | None) -> Scene:
        """Where all tokens stand in a row of both, whom they see, and what positions add."""
        rows, before = x.joined.shape[0], 0 if x.image is None else x.image.shape[1]
        at = replace_text(where, lambda text: before + text).joined
        seen = None
        if segments is not None:
            image = None if x.image is None else jnp.ones((rows, before), segments.dtype)
            seen = Halves(image, segments).joined
        scores: Scores = PLAIN
        for bias in self.biases:
            scores = bias(scores, at, at)
        positions = jnp.broadcast_to(at, (rows, at.shape[1]))
        return Scene(positions, seen, key=self.key, scores=scores)

    def compare(
        self,
        images: Float[Array, "B H W C"],
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, ""]]:
        """Vectors of images and of texts, each read without the other, and what multiplies their
        products: 1 / temperature.

        Raises:
            ConfigError: the network has no joint space.
        """
        if self.joint is None:
            raise ConfigError("this BEiT3 compares no images and texts: joint=Joint(256)")
        of_images = self.joint.of_images(self(images=images).image)
        of_texts = self.joint.of_texts(self(tokens, segments=segments).text, segments)
        return of_images, of_texts, self.joint.scale

    def cut(self, images: Float[Array, "B H W C"]) -> Float[Array, "B P X"]:
        """The numbers of each patch of images."""
        return self.patches.c.cut(images)

    def paint(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B P X"]:
        """What each patch of an image looks like, by its hidden states: the first is the image's.

        Raises:
            ConfigError: the network guesses no pixels.
        """
        if self.pixels is None:
            raise ConfigError("this BEiT3 guesses no pixels: pixels=Pixels()")
        return self.pixels(hidden[:, 1:])


def places(x: Halves, segments: Int[Array, "B T"] | None) -> Halves:
    """Where tokens stand among their kind, in one row for all where there is no padding."""
    where = x.map(lambda x: jnp.arange(x.shape[1])[None])
    if segments is None:
        return where
    text = places_of(segments)
    image = where.image
    image = None if image is None else jnp.broadcast_to(image, (text.shape[0], image.shape[1]))
    return Halves(image, text)


def replace_text(halves: Halves, change: Any) -> Halves:
    """The halves with another text, where there is one."""
    return Halves(halves.image, None if halves.text is None else change(halves.text))
