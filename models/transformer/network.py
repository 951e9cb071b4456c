"""The encoder and the decoder: one stack of blocks over tokens.

Source: Vaswani et al. 2017, arXiv 1706.03762; as in TorchScale, Ma et al. 2022, arXiv 2211.13184.
"""

# B batch, T length, D model size, V vocabulary.

from dataclasses import dataclass

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from jscale.errors import ConfigError
from jscale.mesh import Chosen
from jscale.models.decoder import KeysValues, Output
from jscale.models.draws import Drawing
from jscale.models.feed import Drop, apart
from jscale.models.initial import Scheme, table
from jscale.models.layers import Embed
from jscale.models.moe import Feeds
from jscale.models.norms import Layer, Norm
from jscale.models.positions import Learned, Position
from jscale.models.residual import Residual, Stage, SubLN
from jscale.models.transformer.config import Embedding, body_of, unblocked
from jscale.models.transformer.head import Head, Headed, Plain
from jscale.models.transformer.pattern import Attends, Dense
from jscale.models.transformer.stack import Tower, scene_of


@dataclass(frozen=True)
class TransformerEncoder:
    """A bidirectional Transformer: each token sees all of its segment.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    feed: Feeds  # the feed-forward, or several that take turns over the layers: MLP(3072)
    residual: Residual = SubLN()  # PreNorm(), PostNorm(), DeepNorm() or SubLN()
    positions: tuple[Position, ...] = (Learned(),)  # how it knows where tokens stand
    norm: Norm = Layer()  # Layer() or RMS()
    drop: Drop = Drop()  # what training drops
    head: Head | None = Plain()  # how it scores tokens: Plain(), Masked(), or not
    init: str = "torchscale"  # how weights begin: torchscale, paper or bert
    bias: bool = True  # whether attention's projections have biases
    embedding: Embedding = Embedding()  # what happens to embeddings before the first block
    last_norm: bool = True  # whether a norm ends it, where norms stand before branches
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots
    attends: Attends = Dense()  # which pairs: Dense(), or LongNet's Dilated(((2048, 1), (8192, 4)))

    def __post_init__(self) -> None:
        check_vocab(self.vocab)
        body_of(self).check(self.layers)
        if body_of(self) != unblocked(body_of(self)):
            raise ConfigError(
                "XPos(blockwise=…) is causal: it is for decoders, an encoder sees all of a row"
            )

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "EncoderNetwork":
        return EncoderNetwork(self, rngs, compute)


@dataclass(frozen=True)
class TransformerDecoder:
    """A causal Transformer.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    feed: Feeds  # the feed-forward, or several that take turns over the layers: MLP(3072)
    residual: Residual = SubLN()  # PreNorm(), PostNorm(), DeepNorm() or SubLN()
    positions: tuple[Position, ...] = (Learned(),)  # how it knows where tokens stand
    norm: Norm = Layer()  # Layer() or RMS()
    drop: Drop = Drop()  # what training drops
    head: Head | None = Plain()  # how it scores tokens: Plain(tied=True), or not
    init: str = "torchscale"  # how weights begin: torchscale, paper or bert
    bias: bool = True  # whether attention's projections have biases
    embedding: Embedding = Embedding()  # what happens to embeddings before the first block
    last_norm: bool = True  # whether a norm ends it, where norms stand before branches
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots
    attends: Attends = Dense()  # which pairs: Dense(), or LongNet's Dilated(((2048, 1), (8192, 4)))

    def __post_init__(self) -> None:
        check_vocab(self.vocab)
        body_of(self).check(self.layers)

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "DecoderNetwork":
        return DecoderNetwork(self, rngs, compute)


def check_vocab(vocab: int) -> None:
    """Raises ConfigError unless there is a token."""
    if vocab < 1:
        raise ConfigError(f"vocab must be at least 1, not {vocab}")


def embed_of(vocab: int, dim: int, rngs: nnx.Rngs, compute: DTypeLike, scheme: Scheme) -> Embed:
    """An embedding that begins as a scheme says."""
    embed = Embed(vocab, dim, rngs, compute)
    embed.table = table(rngs, scheme.tokens, dim, vocab=vocab, embed=dim)
    return embed


class _Single(Headed, Drawing):
    """One stack of blocks between an embedding and a head."""

    def __init__(
        self,
        c: TransformerEncoder | TransformerDecoder,
        stage: Stage,
        rngs: nnx.Rngs,
        compute: DTypeLike,
    ):
        body = body_of(c)
        scheme = body.parts(stage).style.scheme
        self.embed = embed_of(c.vocab, c.dim, rngs, compute, scheme)
        self.tower = Tower(body, stage, rngs)
        style = (scheme, c.norm)
        self.head = None if c.head is None else c.head.build(c.vocab, c.dim, rngs, style)


class EncoderNetwork(_Single):
    """What `TransformerEncoder` builds."""

    causal = False  # its hidden states have seen the tokens that come after

    def __init__(self, c: TransformerEncoder, rngs: nnx.Rngs, compute: DTypeLike):
        super().__init__(c, Stage(encoder=c.layers), rngs, compute)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Output:
        """Hidden states; segment 0 is padding, on either side."""
        scene = scene_of(tokens, positions, segments, self.key)
        x, reports, _ = self.tower(self.embed, tokens, scene)
        told = apart(reports)
        return Output(x, told.reports, None, told.penalty, told.loads)


class DecoderNetwork(_Single):
    """What `TransformerDecoder` builds."""

    def __init__(self, c: TransformerDecoder, rngs: nnx.Rngs, compute: DTypeLike):
        super().__init__(c, Stage(decoder=c.layers, decodes=True), rngs, compute)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: KeysValues | None = None,
    ) -> Output:
        """Hidden states of each token from those up to it."""
        scene = scene_of(tokens, positions, segments, self.key)
        x, reports, cache = self.tower(self.embed, tokens, scene, cache)
        told = apart(reports)
        return Output(x, told.reports, cache, told.penalty, told.loads)

    def exchange(self, length: int) -> Chosen | None:
        """What attention exchanges under the current layout; None where devices have whole rows."""
        return self.tower.exchange(length)

    def cache(self, batch: int, length: int) -> KeysValues:
        """An empty cache for `length` positions."""
        return self.tower.empty(batch, length, self.embed.compute)
