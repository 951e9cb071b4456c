"""What every decoder takes and gives, so that losses and generation fit all of them."""

# B batch, T length, S cache length, D model size, V vocabulary, K key/value heads, H head size.

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.mesh import Chosen


class Context(NamedTuple):
    """What all blocks of a network share. Segment 0 is padding; None means one segment a row.

    Along a row, positions of one segment grow by 1 from place to place. `places` are those in the
    row, where tokens do not stand in their order (zig-zag over devices); None: 0, 1, …. `key` is
    for what a block draws in training, and each block's own; None: nothing is drawn.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    places: Int[Array, "B T"] | None = None
    key: Any = None  # a PRNGKeyArray or None
    tokens: Int[Array, "B T"] | None = None  # as numbers, where they are any


class Output(NamedTuple):
    """The last hidden states, what blocks report by name (stacked over layers), and the cache.

    `penalty` is what the network itself wants small, times its weight: an uneven load of experts.
    Losses add it. Reports become metrics by their mean over layers. `loads` is what experts had to
    do, by the path of their layer's weights: losses hand it on as it is.
    """

    hidden: Float[Array, "B T D"]
    reports: dict[str, Any]
    cache: Any
    penalty: Any = 0.0  # a number or Float[Array, ""]
    loads: Mapping[str, Any] = {}


class KeysValues(NamedTuple):
    """Keys and values seen so far; slot s holds those of position s."""

    k: Float[Array, "*layers B S K H"]
    v: Float[Array, "*layers B S K H"]

    @staticmethod
    def empty(layers: int, shape: tuple[int, int, int, int], dtype: Any) -> "KeysValues":
        """A cache of zeros for `layers` layers; `shape` is (B, S, K, H)."""
        return KeysValues(jnp.zeros((layers, *shape), dtype), jnp.zeros((layers, *shape), dtype))

    def write(self, k: Array, v: Array, positions: Int[Array, "B T"]) -> "KeysValues":
        """The cache with new keys and values in the slots of their positions."""
        rows = jnp.arange(k.shape[0])[:, None]
        put = lambda old, new: old.at[rows, positions].set(new.astype(old.dtype), mode="drop")
        return KeysValues(put(self.k, k), put(self.v, v))


@runtime_checkable
class Decoder(Protocol):
    """A causal language model. Positions default to 0, 1, …; segments to one a row.

    With a cache, tokens of segment 0 are padding and leave no trace.
    """

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Any = None,
    ) -> Output: ...

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]: ...

    def cache(self, batch: int, length: int) -> Any: ...


class Begun(NamedTuple):
    """A prompt that was read: where the next token is scored from, its position, and what later
    tokens need of those before."""

    hidden: Float[Array, "B 1 D"]
    position: Int[Array, "B"]
    carry: Any


@runtime_checkable
class Answering(Protocol):
    """A network that reads a whole text and then writes one of its own: an encoder-decoder."""

    def begin(
        self, tokens: Int[Array, "B S"], lengths: Int[Array, "B"], start: int, length: int
    ) -> Begun:
        """Texts read, of these lengths, and room for `length` tokens from the token `start` on."""
        ...

    def further(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], carry: Any
    ) -> Output:
        """Hidden states of the next tokens; the output's cache is the carry that goes on."""
        ...

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]: ...


@runtime_checkable
class Seeing(Decoder, Protocol):
    """A decoder that reads images beside its tokens: those of a row stand at its image tokens."""

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Any = None,
        images: Float[Array, "B *I H W C"] | None = None,
    ) -> Output: ...

    def pictures(self, images: Float[Array, "B *I H W C"]) -> Float[Array, "B _ D"]: ...


class Continuing:
    """A decoder as one that writes: it goes on with the text that it has read.

    `shown` is what it reads besides the prompts, by name of its argument, such as images.
    """

    def __init__(self, decoder: Any, shown: dict[str, Any] | None = None):
        self.decoder, self.shown = decoder, shown or {}

    def begin(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"], start: int | None, length: int
    ) -> Begun:
        """Prompts read; there is no token between them and what follows."""
        cache = self.decoder.cache(tokens.shape[0], tokens.shape[1] + length)
        # Padding writes into slots that no earlier position sees and later tokens overwrite; of a
        # cache without slots its segment, 0, keeps it out.
        real = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
        out = self.decoder(tokens, segments=real, cache=cache, **self.shown)
        last = jnp.take_along_axis(out.hidden, (lengths - 1)[:, None, None], 1)
        return Begun(last, lengths, out.cache)

    def further(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], carry: Any
    ) -> Output:
        """Hidden states of the next tokens."""
        return self.decoder(tokens, positions=positions, cache=carry)

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The scores of all tokens."""
        return self.decoder.unembed(hidden)


@runtime_checkable
class Scoring(Protocol):
    """A decoder that gives the log-probabilities of targets without holding all their scores.

    The results are the log-probability and log Σ exp for each place, in float32; with `smoothing` ε
    a target is (1 − ε) · target + ε / V. The gradient of Σ weights · (−log p + z_loss · log²Z), or
    a multiple, is to be expected: it may be prepared.
    """

    def logprobs(
        self,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"] | None = None,
        z_loss: float = 0.0,
        smoothing: float = 0.0,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]: ...


@jax.named_scope("loss")
def logprobs(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], smoothing: float = 0.0
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The log-probability of each target, and log Σ exp of the logits, both in float32.

    With `smoothing` ε it is the mean under (1 − ε) · target + ε / V.
    """
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, -1)
    # A sum over a mask rather than a gather: a vocabulary split over devices stays split.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    own = jnp.where(hit, logits, 0.0).sum(-1)
    if smoothing:
        own = (1 - smoothing) * own + smoothing * logits.mean(-1)
    return own - normalizer, normalizer


class Foreseen(NamedTuple):
    """What a network knows of tokens further ahead than the next one, aligned with it.

    For each depth k = 1, 2, …: hidden states at place t, of what is known k tokens earlier and the
    tokens since, from which token t + 1 is scored; and where there are any: not in the first k
    places of a segment. Reports, penalty and loads are as in `Output`.
    """

    depths: tuple[tuple[Float[Array, "B T D"], Bool[Array, "B T"]], ...]
    reports: dict[str, Any]
    penalty: Any = 0.0
    loads: Mapping[str, Any] = {}


@runtime_checkable
class Foreseeing(Decoder, Protocol):
    """A decoder that can look further ahead than the next token, from its last hidden states."""

    def foresee(
        self,
        hidden: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Foreseen: ...


@runtime_checkable
class Sharing(Protocol):
    """A decoder that can tell how devices that share a sequence attend to each other's tokens."""

    def exchange(self, length: int) -> Chosen | None: ...


def places_of(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each token's place since its segment began, padding on the left or not.

    >>> places_of(jnp.asarray([[0, 0, 1, 1, 2, 2, 2]])).tolist()
    [[0, 1, 0, 1, 0, 1, 2]]
    """
    place = jnp.arange(segments.shape[1])
    new = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return place - jax.lax.cummax(jnp.where(new, place, 0), axis=1)


def context_of(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    key: Any = None,
) -> Context:
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return Context(positions, segments, key=key, tokens=tokens)
