"""An encoder and a decoder that reads it: from sequences to sequences.

Source: Vaswani et al. 2017, arXiv 1706.03762; as in TorchScale, Ma et al. 2022, arXiv 2211.13184.
"""

# B batch, T length, S source length, D model size.

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.models.decoder import Begun, KeysValues, Output, places_of
from jscale.models.draws import Drawing, stream
from jscale.models.feed import Drop, apart
from jscale.models.layers import Embed
from jscale.models.moe import Feeds
from jscale.models.norms import Layer, Norm
from jscale.models.positions import Learned, Position
from jscale.models.residual import Residual, Stage, SubLN
from jscale.models.transformer.attend import Source
from jscale.models.transformer.config import (
    Body,
    Embedding,
    body_of,
    check_choice,
    unblocked,
)
from jscale.models.transformer.head import Headed, Plain
from jscale.models.transformer.network import check_vocab, embed_of
from jscale.models.transformer.stack import Tower, scene_of

SHARE = ("none", "decoder", "all")


@dataclass(frozen=True)
class EncoderDecoder:
    """An encoder and a decoder of one size, as for translation.

    Raises:
        ConfigError: sizes below 1 or that do not divide, an unknown name, or embeddings that
            cannot be shared.
    """

    vocab: int  # tokens of the target that can be told apart
    dim: int  # size of the residual streams
    layers: tuple[int, int]  # blocks of the encoder, and of the decoder
    heads: int  # of attention; each of size dim / heads
    feed: Feeds  # the feed-forward, or several that take turns over the layers: MLP(3072)
    residual: Residual = SubLN()  # PreNorm(), PostNorm(), DeepNorm() or SubLN()
    positions: tuple[Position, ...] = (Learned(),)  # how both know where tokens stand
    norm: Norm = Layer()  # Layer() or RMS()
    drop: Drop = Drop()  # what training drops
    share: str = "all"  # one matrix for: none, decoder (embedding and head), all (the source's too)
    source_vocab: int | None = None  # tokens of the source; None: those of the target
    init: str = "torchscale"  # how weights begin: torchscale, paper or bert
    bias: bool = True  # whether attention's projections have biases
    embedding: Embedding = Embedding()  # what happens to embeddings before the first block
    last_norm: bool = True  # whether a norm ends the encoder, where norms stand before branches
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        check_vocab(self.vocab)
        check_vocab(self.vocab if self.source_vocab is None else self.source_vocab)
        body_of(self).check(*self.layers)
        check_choice("sharing", self.share, SHARE)
        if self.share == "all" and self.source_vocab not in (None, self.vocab):
            raise ConfigError(
                f"share='all' needs one vocabulary, not source_vocab={self.source_vocab} and"
                f" vocab={self.vocab}"
            )

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "EncoderDecoderNetwork":
        return EncoderDecoderNetwork(self, rngs, compute)


class Reading(NamedTuple):
    """What a decoder keeps of its own tokens and of the source, for token after token."""

    own: KeysValues
    source: KeysValues
    segments: Int[Array, "B S"] | None


class EncoderDecoderNetwork(Headed, Drawing):
    """What `EncoderDecoder` builds."""

    def __init__(self, c: EncoderDecoder, rngs: nnx.Rngs, compute: DTypeLike):
        encoder, decoder = c.layers
        body = body_of(c)
        stage = Stage(encoder, decoder)
        scheme = body.parts(stage).style.scheme
        make = lambda vocab: embed_of(vocab, c.dim, rngs, compute, scheme)
        self.embed = make(c.vocab)
        sources = c.vocab if c.source_vocab is None else c.source_vocab
        self.source_embed = None if c.share == "all" else make(sources)
        self.encoder = Tower(unblocked(body), stage, rngs)
        decoding = Stage(encoder, decoder, decodes=True)
        self.decoder = Tower(ended(body), decoding, rngs)
        head = Plain(tied=c.share != "none")
        self.head = head.build(c.vocab, c.dim, rngs, (scheme, c.norm))

    def __call__(
        self,
        source: Int[Array, "B S"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        source_segments: Int[Array, "B S"] | None = None,
    ) -> Output:
        """Hidden states of the target's tokens, each from those up to it and from the source.

        A target's segment reads the source's segment of the same number; 0 is padding.
        """
        read = self.encode(source, source_segments)
        key = None if self.key is None else stream(self.key, "decoder")
        reads = source_of(read.hidden, source_segments)
        scene = scene_of(tokens, positions, segments, key, reads)
        x, reports, _ = self.decoder(self.embed, tokens, scene)
        told = apart(reports)
        reports, loads = {**read.reports, **told.reports}, {**read.loads, **told.loads}
        return Output(x, reports, None, read.penalty + told.penalty, loads)

    def encode(
        self, source: Int[Array, "B S"], segments: Int[Array, "B S"] | None = None
    ) -> Output:
        """The encoder's hidden states; segment 0 is padding."""
        key = None if self.key is None else stream(self.key, "encoder")
        scene = scene_of(source, None, segments, key)
        x, reports, _ = self.encoder(self._source_embed(), source, scene)
        told = apart(reports)
        reports = {f"encoder_{name}": value for name, value in told.reports.items()}
        return Output(x, reports, None, told.penalty, told.loads)

    def read(
        self, source: Int[Array, "B S"], segments: Int[Array, "B S"] | None, length: int
    ) -> Reading:
        """A source, read once, and room for `length` tokens of the target."""
        kept = self.decoder.sources(self.encode(source, segments).hidden)
        own = self.decoder.empty(source.shape[0], length, self.embed.compute)
        return Reading(own, kept, segments)

    def further(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], reading: Reading
    ) -> Output:
        """Hidden states of the next tokens of a target; the cache is the reading that goes on."""
        scene = scene_of(tokens, positions, None, source=source_of(None, reading.segments))
        x, reports, own = self.decoder(self.embed, tokens, scene, reading.own, reading.source)
        assert own is not None
        return Output(x, reports, reading._replace(own=own))

    def begin(
        self, tokens: Int[Array, "B S"], lengths: Int[Array, "B"], start: int, length: int
    ) -> Begun:
        """Sources of these lengths, read once, and the first token of a target (`Answering`)."""
        segments = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
        first = jnp.full((tokens.shape[0], 1), start, jnp.int32)
        reading = self.read(tokens, segments, length)
        out = self.further(first, jnp.zeros_like(first), reading)
        return Begun(out.hidden, jnp.ones_like(lengths), out.cache)

    def _source_embed(self) -> Embed:
        return self.embed if self.source_embed is None else self.source_embed


def source_of(hidden: Float[Array, "B S D"] | None, segments: Int[Array, "B S"] | None) -> Source:
    """A source whose positions count from where its segments begin, as a target's do."""
    positions = None if segments is None else places_of(segments)
    return Source(hidden, segments, positions=positions)


def ended(body: Body) -> Body:
    """The same choices, with a last norm: a decoder has one whatever the encoder has."""
    return replace(body, last_norm=True)
