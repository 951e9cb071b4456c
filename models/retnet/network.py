"""RetNet: blocks of multi-scale retention and a gated feed-forward, and the published sizes.

Source: Sun et al. 2023, arXiv 2307.08621.
"""

# B batch, T length, D model size, V vocabulary.

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh import constrain
from jscale.models.decoder import Context, Output, context_of, places_of
from jscale.models.draws import Drawing, drop_path, dropout, stream
from jscale.models.feed import GLU, Drop, Feed, Style, apart
from jscale.models.initial import scheme_of, table
from jscale.models.layers import Embed, RMSNorm, Stack, Unembed, check_remat
from jscale.models.moe import Feeds, check_feeds, feeds_of
from jscale.models.norms import RMS
from jscale.models.residual import PreNorm, Residual, Stage
from jscale.models.retnet.carry import padding_first
from jscale.models.retnet.forms import Chunkwise, Form
from jscale.models.retnet.retention import Memory, Retention

# Name: dim, value and the feed-forward's hidden, heads, layers, as published with TorchScale.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "base": (512, 864, 2, 6),
    "medium": (1024, 1728, 4, 16),
    "xl": (2048, 3456, 8, 24),
    "3b": (2560, 4280, 10, 32),
    "7b": (4096, 6912, 16, 32),
    "13b": (5120, 8560, 20, 40),
    "65b": (8192, 13824, 32, 64),
}


@dataclass(frozen=True)
class RetNet:
    """The sizes of a RetNet; by default those of "base".

    The three forms share their parameters, and with the default scale their results too; while
    text is generated each call goes on from the state before, whatever the form.

    Raises:
        ConfigError: a size below 1, a dim or value that does not divide over the heads, an odd
            head, layers that are no whole turns, an unknown initialisation or policy, dropout of
            attention.
    """

    vocab: int  # tokens that can be told apart
    dim: int = 512  # size of the residual stream, and of the queries and keys of all heads
    value: int = 864  # size of the values of all heads
    heads: int = 2  # heads, each with its own decay; 256 of dim a head is advised
    layers: int = 6  # blocks
    feed: Feeds = GLU(864, "gelu")  # the feed-forward, or several that take turns over the layers
    form: Form = Chunkwise()  # how whole rows are computed: Chunkwise, Parallel, Recurrent
    residual: Residual = PreNorm()  # where norms stand: PreNorm, PostNorm, DeepNorm
    init: str = "torchscale"  # first weights: torchscale, paper (Xavier, as DeepNet), bert
    drop: Drop = Drop()  # what training drops
    embed_scale: float = 1.0  # multiplies embeddings
    embed_norm: bool = False  # whether embeddings are normalised before the first block
    tied: bool = False  # whether embedding and head share one matrix
    eps: float = 1e-6  # of the norms, the one of each head among them
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "value", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("dim", "value"):
            if getattr(self, name) % self.heads:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be a multiple of heads={self.heads}"
                )
        if self.dim // self.heads % 2:
            raise ConfigError(
                f"a head's keys must be of even size for rotation, not {self.dim // self.heads}:"
                f" dim={self.dim} over heads={self.heads}"
            )
        if self.drop.attention:
            raise ConfigError(
                f"drop.attention={self.drop.attention}: retention has no probabilities to drop;"
                " drop.units or drop.path are what a RetNet has"
            )
        if not self.eps > 0:
            raise ConfigError(f"eps must be positive, not {self.eps}")
        check_feeds(self.feed, self.layers)
        scheme_of(self.init)
        check_remat(self.remat)

    @classmethod
    def of_size(cls, name: str, vocab: int, **changes: Any) -> "RetNet":
        """A published size: base, medium, xl, 3b, 7b, 13b or 65b, with a gate of silu.

        Raises:
            ConfigError: there is no such size.
        """
        if name not in SIZES:
            raise ConfigError(f"no published RetNet {name!r}; {did_you_mean(name, SIZES)}")
        dim, value, heads, layers = SIZES[name]
        sizes = dict(vocab=vocab, dim=dim, value=value, heads=heads, layers=layers)
        return cls(**{**sizes, "feed": GLU(value, "swish"), **changes})

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> "Network":
        return Network(self, rngs, compute)


class Block(nnx.Module):
    """Retention and feed-forward, each a branch of the residual stream."""

    def __init__(self, c: RetNet, feed: Feed, rngs: nnx.Rngs):
        stage = Stage(decoder=c.layers, decodes=True)
        inner = RMS(c.eps) if c.residual.inner else None
        style = Style(scheme_of(c.init), c.residual.gain(stage), inner, c.drop, decodes=True)
        self.drop, self.before, self.alpha = c.drop, c.residual.before, c.residual.alpha(stage)
        self.retain_norm, self.retain = RMSNorm(c.dim, c.eps), Retention(c, rngs, style)
        self.feed_norm, self.feed = RMSNorm(c.dim, c.eps), feed.build(c.dim, rngs, style)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, own: tuple[Memory | None, Any]
    ) -> tuple[Float[Array, "B T D"], tuple[dict[str, Any], Memory | None]]:
        memory, rate = own

        def add(x: Array, norm: RMSNorm, branch: Any, name: str) -> tuple[Array, Any]:
            y, more = branch(norm(x) if self.before else x)
            if rate is not None:
                y = drop_path(y, rate, stream(context.key, name))
            x = constrain(self.alpha * x + y, "batch", "length", "embed")
            return x if self.before else norm(x), more

        def retain(x: Array) -> tuple[Array, Memory | None]:
            y, memory_after = self.retain(x, context, memory)
            return dropout(y, self.drop.units, stream(context.key, "retain")), memory_after

        with jax.named_scope("retain"):
            x, memory = add(x, self.retain_norm, retain, "retain path")
        with jax.named_scope("feed"):
            feed = lambda x: self.feed(x, context)
            x, reports = add(x, self.feed_norm, feed, "feed path")
        return x, (reports, memory)


class Network(Drawing):
    """Embedding, blocks, norm, head."""

    def __init__(self, c: RetNet, rngs: nnx.Rngs, compute: DTypeLike):
        self.c = c
        scheme, D = scheme_of(c.init), c.dim
        self.embed = Embed(c.vocab, D, rngs, compute)
        self.embed.table = table(rngs, scheme.tokens, D, vocab=c.vocab, embed=D)
        self.embed_norm = RMSNorm(D, c.eps) if c.embed_norm else None
        makes = tuple(lambda rngs, feed=feed: Block(c, feed, rngs) for feed in feeds_of(c.feed))
        self.blocks = Stack(makes, c.layers, rngs, c.remat)
        self.norm = RMSNorm(D, c.eps) if c.residual.before else None
        self.head = None if c.tied else Unembed(c.vocab, D, rngs)
        if self.head is not None:
            self.head.kernel = table(rngs, scheme.head, D, embed=D, vocab=c.vocab)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Memory | None = None,
    ) -> Output:
        back = None
        if segments is not None and positions is None:
            positions = places_of(segments)
        context = context_of(tokens, positions, segments, self.key)
        if segments is not None and cache is not None:
            (tokens, context), back = padding_first(tokens, context)
        own = cache, self.c.drop.paths(self.c.layers)
        x, (reports, cache) = self.blocks(self.enter(tokens), context, own)
        x = x if self.norm is None else self.norm(x)
        if back is not None:
            x = jnp.take_along_axis(x, back[..., None], 1)
        told = apart(reports)
        return Output(x, told.reports, cache, told.penalty, told.loads)

    def enter(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens, as the first block gets them."""
        x = self.c.embed_scale * self.embed(tokens)
        x = x if self.embed_norm is None else self.embed_norm(x)
        return dropout(x, self.c.drop.units, stream(self.key, "embed"))

    @jax.named_scope("unembed")
    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self.embed.unembed(hidden) if self.head is None else self.head(hidden)

    @jax.named_scope("unembed")
    def logprobs(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """As `Scoring` says."""
        return (self.head or self.embed).logprobs(hidden, targets, *more)

    def cache(self, batch: int, length: int) -> Memory:
        """The memory of nothing: its size is that of any length."""
        c = self.c
        shape = (c.layers, batch, c.heads, c.dim // c.heads, c.value // c.heads)
        return Memory(jnp.zeros(shape, jnp.float32))
