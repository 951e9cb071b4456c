"""ViT: an image as a row of patches, through a Transformer with norms before its branches.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929.
"""

# B batch, H height, W width, C channels, Q an image's own token and its patches, D model size,
# K classes.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.mesh.layout import current
from jscale.models.activations import check_activation
from jscale.models.beit3.patches import Patches
from jscale.models.decoder import Output
from jscale.models.draws import Drawing, dropout, stream
from jscale.models.feed import MLP, Drop, Linear
from jscale.models.initial import SCHEMES, Fans, named
from jscale.models.layers import Stack, project
from jscale.models.norms import Layer
from jscale.models.residual import PreNorm, Stage
from jscale.models.transformer.attend import Scene
from jscale.models.transformer.block import Block, State
from jscale.models.transformer.config import Body

BEGIN = SCHEMES["bert"]


@dataclass(frozen=True)
class ViT:
    """The sizes of a ViT; with `classes` it says which of them an image is.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name.
    """

    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    hidden: int  # size inside the feed-forward
    patches: Patches = Patches()  # images and the patches they are cut into
    classes: int | None = 1000  # what an image may be; None: hidden states and a pooler
    activation: str = "gelu"  # of the feed-forward, by name: models/activations.py
    eps: float = 1e-12  # of the norms
    drop: Drop = Drop()  # what training drops
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_tower(self)
        if self.classes is not None and self.classes < 1:
            raise ConfigError(f"classes must be at least 1, not {self.classes}")

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "ViTNetwork":
        return ViTNetwork(self, rngs, compute)


def check_tower(c: Any) -> None:
    """Raises ConfigError unless the sizes of a tower over images fit."""
    if c.hidden < 1:
        raise ConfigError(f"hidden must be at least 1, not {c.hidden}")
    check_activation(c.activation)
    body_of(c).check(c.layers)


def body_of(c: Any) -> Body:
    """The choices of the blocks of a tower over images."""
    more: dict[str, Any] = dict(positions=(), norm=Layer(c.eps), drop=c.drop, init="bert")
    return Body(c.dim, c.heads, MLP(c.hidden, c.activation), PreNorm(), **more, remat=c.remat)


class Patched(nnx.Module):
    """Vectors of an image's own token and of its patches, each with that of its place."""

    def __init__(
        self, patches: Patches, dim: int, rngs: nnx.Rngs, compute: DTypeLike, bias: bool = True
    ):
        self.patches, self.compute = patches, jnp.dtype(compute)
        make = lambda *shape: BEGIN.matrix(rngs.params(), shape, Fans(patches.numbers, dim))
        self.kernel = named(make(patches.numbers, dim), None, "embed")
        self.bias = named(jnp.zeros(dim), "scale") if bias else None
        self.first = named(make(dim), "scale")
        self.places = named(make(1 + patches.count, dim), None, "embed")

    @jax.named_scope("embed")
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B Q D"]:
        """Vectors of images.

        Raises:
            ConfigError: images of another size, or a mesh that would split one.
        """
        layout = current()
        if layout is not None and layout.length_ways > 1:
            raise ConfigError(
                f"the patches of an image are not split: the mesh has {layout.length_ways} ways for"
                " a sequence and must have 1 (context=1)"
            )
        x = project("bpx,xd->bpd", self.patches.cut(images).astype(self.compute), self.kernel[...])
        x = x if self.bias is None else x + self.bias[...].astype(x.dtype)
        first = jnp.broadcast_to(self.first[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        places = constrain(self.places[...], None, "embed")  # whole over fsdp while it is read
        x = jnp.concatenate([first, x], 1) + places.astype(x.dtype)
        return constrain(x, "batch", "length", "embed")


class Tower(nnx.Module):
    """Patches, and the blocks that they go through.

    `bias` says whether patches have one, `normed` whether they are normed before the first block.
    """

    def __init__(
        self,
        c: Any,
        rngs: nnx.Rngs,
        compute: DTypeLike,
        bias: bool = True,
        normed: bool = False,
    ):
        parts, feed = body_of(c).parts(Stage(encoder=c.layers)), MLP(c.hidden, c.activation)
        self.layers, self.drop = c.layers, c.drop
        self.patched = Patched(c.patches, c.dim, rngs, compute, bias)
        self.before = Layer(c.eps).build(c.dim) if normed else None
        self.blocks = Stack(lambda rngs: Block(parts, feed, rngs), c.layers, rngs, c.remat)

    def __call__(
        self, images: Float[Array, "B H W C"], key: Any = None, layers: int | None = None
    ) -> Float[Array, "B Q D"]:
        """Hidden states after the first `layers` blocks (all of them: None), not normed."""
        x = self.patched(images)
        x = x if self.before is None else self.before(x)
        x = dropout(x, self.drop.units, stream(key, "embed"))
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        paths = self.drop.paths(self.layers)
        state = State(rate=None if paths is None else paths[:layers])
        return self.blocks(x, Scene(positions, key=key), state, layers)[0]


class Classes(nnx.Module):
    """x W + b: a score for each class."""

    def __init__(self, dim: int, classes: int, rngs: nnx.Rngs):
        begin = BEGIN.matrix(rngs.params(), (dim, classes), Fans(dim, classes))
        self.kernel, self.bias = named(begin, "embed", None), named(jnp.zeros(classes), "scale")

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B K"]:
        y = project("bd,dk->bk", x, self.kernel[...])
        return y + self.bias[...].astype(y.dtype)


class ViTNetwork(Drawing):
    """What `ViT` builds."""

    def __init__(self, c: ViT, rngs: nnx.Rngs, compute: DTypeLike):
        self.tower = Tower(c, rngs, compute)
        self.norm = Layer(c.eps).build(c.dim)
        self.head = None if c.classes is None else Classes(c.dim, c.classes, rngs)
        square = dict(embed=c.dim, mlp=c.dim)
        self.pooler = Linear(square, rngs, BEGIN, 1.0) if c.classes is None else None

    def __call__(self, images: Float[Array, "B H W C"]) -> Output:
        """Hidden states of an image's own token, the first, and of its patches."""
        return Output(self.norm(self.tower(images, self.key)), {}, None)

    def classify(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """The scores of all classes.

        Raises:
            ConfigError: the network has no classes.
        """
        if self.head is None:
            raise ConfigError("this network tells no classes: classes=10")
        return self.head(self(images).hidden[:, 0])

    def pooled(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B D"]:
        """tanh(x W + b) of an image's own token.

        Raises:
            ConfigError: the network has no pooler.
        """
        if self.pooler is None:
            raise ConfigError("this network has no pooler: classes=None")
        y = self.pooler(hidden[:, :1])[:, 0]
        return jnp.tanh(y.astype(jnp.float32)).astype(y.dtype)
