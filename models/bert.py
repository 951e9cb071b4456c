"""BERT and RoBERTa: encoders with learned positions and kinds of tokens, norms after each sum.

Their hidden states score hidden tokens, or become one vector for a text: a sentence encoder, such
as MiniLM, is a BERT whose vectors are means over tokens.
Source: Devlin et al. 2019, arXiv 1810.04805; Liu et al. 2019 (RoBERTa), arXiv 1907.11692; Reimers &
Gurevych 2019 (pooling), arXiv 1908.10084; Wang et al. 2020 (MiniLM), arXiv 2002.10957.
"""

# B batch, T length, D model size, P rows of a table of positions.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.activations import check_activation
from jscale.models.decoder import Output
from jscale.models.draws import Drawing, dropout, stream
from jscale.models.feed import MLP, Drop, Linear
from jscale.models.initial import SCHEMES, named, table
from jscale.models.layers import Embed, Stack
from jscale.models.norms import Layer
from jscale.models.residual import PostNorm, Stage
from jscale.models.transformer.block import Block, State
from jscale.models.transformer.config import Body, check_choice
from jscale.models.transformer.head import Headed, Masked
from jscale.models.transformer.network import check_vocab, embed_of
from jscale.models.transformer.stack import scene_of

WAYS = ("mean", "first", "pooler")
BEGIN = SCHEMES["bert"]


@dataclass(frozen=True)
class Pooling:
    """How the hidden states of a text become one vector.

    Raises:
        ConfigError: another way than those.
    """

    way: str = "mean"  # mean (of its tokens), first (its first token), pooler (a layer after that)
    unit: bool = True  # whether vectors are brought to length 1

    def __post_init__(self) -> None:
        check_choice("pooling", self.way, WAYS)


@dataclass(frozen=True)
class BERT:
    """The sizes of a BERT; with a `pooling` it gives a vector for each text.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name, a pooling without its
            layer.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    hidden: int  # size inside the feed-forward
    longest: int = 512  # positions that are learned
    types: int = 2  # kinds of tokens, such as of a first and a second text
    activation: str = "gelu"  # of the feed-forward, by name: models/activations.py
    eps: float = 1e-12  # of the norms
    drop: Drop = Drop()  # what training drops
    head: Masked | None = Masked()  # how it scores tokens, or not
    pooler: bool = False  # whether it has a layer after the first token
    pooling: Pooling | None = None  # how a text becomes a vector: Pooling("mean"), or not
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_vocab(self.vocab)
        for name in ("hidden", "longest", "types"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_activation(self.activation)
        self.body.check(self.layers)
        if self.pooling is not None and self.pooling.way == "pooler" and not self.pooler:
            raise ConfigError(
                'Pooling("pooler") needs the layer that it is named after: pooler=True'
            )

    @property
    def first(self) -> int:
        """The row that position 0 has in the table of positions."""
        return 0

    @property
    def body(self) -> Body:
        """The choices of its blocks."""
        feed, norm = MLP(self.hidden, self.activation), Layer(self.eps)
        more: dict[str, Any] = dict(positions=(), norm=norm, drop=self.drop, init="bert")
        return Body(self.dim, self.heads, feed, PostNorm(), **more, remat=self.remat)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "BERTNetwork":
        return BERTNetwork(self, rngs, compute)


@dataclass(frozen=True)
class RoBERTa(BERT):
    """The sizes of a RoBERTa: its positions begin after the row of padding.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name.
    """

    padding: int = 1  # the row of padding in the table of positions, which is the token's number

    @property
    def first(self) -> int:
        """The row that position 0 has in the table of positions."""
        return self.padding + 1


class Embedding(nnx.Module):
    """norm(token + position + kind)."""

    def __init__(self, c: BERT, rngs: nnx.Rngs, compute: DTypeLike):
        self.first, self.longest, self.drop = c.first, c.longest, c.drop.units
        self.tokens: Embed = embed_of(c.vocab, c.dim, rngs, compute, BEGIN)
        make = lambda rows: named(
            table(rngs, BEGIN.places, c.dim, n=rows, d=c.dim)[...], None, "embed"
        )
        self.places, self.types = make(c.first + c.longest), make(c.types)
        self.norm = Layer(c.eps).build(c.dim)

    @jax.named_scope("embed")
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        types: Int[Array, "B T"] | None,
        key: Any,
    ) -> Float[Array, "B T D"]:
        """Vectors of tokens; those of positions or kinds beyond the tables are not numbers.

        Raises:
            ConfigError: a row is longer than the table of positions.
        """
        if tokens.shape[1] > self.longest:
            raise ConfigError(
                f"rows of {tokens.shape[1]} tokens do not fit this network: longest={self.longest}"
            )
        x = self.tokens(tokens)
        kinds = jnp.zeros_like(tokens) if types is None else types
        for rows, at in ((self.places, positions + self.first), (self.types, kinds)):
            whole = constrain(rows[...], None, "embed")  # over fsdp too, while it is read
            x = x + whole.at[at].get(mode="fill", fill_value=jnp.nan).astype(x.dtype)
        x = dropout(self.norm(x), self.drop, stream(key, "embed"))
        return constrain(x, "batch", "length", "embed")


class BERTNetwork(Headed, Drawing):
    """What `BERT` builds."""

    causal = False  # its hidden states have seen the tokens that come after

    def __init__(self, c: BERT, rngs: nnx.Rngs, compute: DTypeLike):
        parts = c.body.parts(stage := Stage(encoder=c.layers))
        style, feed = (BEGIN, Layer(c.eps)), MLP(c.hidden, c.activation)
        self.embedding = Embedding(c, rngs, compute)
        self.blocks = Stack(lambda rngs: Block(parts, feed, rngs), stage.layers, rngs, c.remat)
        self.head = None if c.head is None else c.head.build(c.vocab, c.dim, rngs, style)
        square = dict(embed=c.dim, mlp=c.dim)
        self.pooler = Linear(square, rngs, BEGIN, 1.0) if c.pooler else None
        self.pooling, self.paths = c.pooling, c.drop.paths(c.layers)

    @property
    def embed(self) -> Embed:
        """The vectors of tokens, by which a tied head scores them."""
        return self.embedding.tokens

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        types: Int[Array, "B T"] | None = None,
    ) -> Output:
        """Hidden states of each token from all of its segment; segment 0 is padding.

        `types` are kinds of tokens, all 0 by default; positions count from where segments begin.
        """
        scene = scene_of(tokens, positions, segments, self.key)
        x = self.embedding(tokens, scene.positions, types, scene.key)
        x, _ = self.blocks(x, scene, State(rate=self.paths))
        return Output(x, {}, None)

    def vectors(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        types: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B D"]:
        """One vector for each row, in float32; segment 0 is padding, all else one text.

        Raises:
            ConfigError: the network has no pooling.
        """
        if self.pooling is None:
            raise ConfigError('this network makes no vectors of texts: pooling=Pooling("mean")')
        seen = jnp.ones(tokens.shape, bool) if segments is None else segments > 0
        hidden = self(tokens, segments=segments, types=types).hidden
        return self.pool(self.pooling, hidden, seen)

    def pool(self, how: Pooling, hidden: Float[Array, "B T D"], seen: Any) -> Float[Array, "B D"]:
        """A vector for each row from those of its tokens that are `seen` (bool [B, T])."""
        if how.way == "mean":
            share = seen / jnp.maximum(seen.sum(1, keepdims=True), 1)
            x = jnp.einsum("btd,bt->bd", hidden.astype(jnp.float32), share.astype(jnp.float32))
        else:
            begin = seen.argmax(1)[:, None, None]
            x = jnp.take_along_axis(hidden, begin, 1)
            x = (self.pooled(x) if how.way == "pooler" else x)[:, 0].astype(jnp.float32)
        if how.unit:
            x = x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
        return constrain(x, "batch", None)

    def pooled(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """tanh(x W + b): what BERT makes of a first token.

        Raises:
            ConfigError: the network has no such layer.
        """
        if self.pooler is None:
            raise ConfigError("this network has no layer after the first token: pooler=True")
        return jnp.tanh(self.pooler(x).astype(jnp.float32)).astype(x.dtype)
