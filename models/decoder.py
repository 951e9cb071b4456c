"""What every decoder takes and gives, so that losses and generation fit all of them."""

# B batch, T length, S cache length, D model size, V vocabulary, K key/value heads, H head size.

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jscale.mesh import Chosen


class Context(NamedTuple):
    """What all blocks of a network share. Segment 0 is padding; None means one segment a row.

    Along a row, positions of one segment grow by 1 from place to place. `places` are those in the
    row, where tokens do not stand in their order (zig-zag over devices); None: 0, 1, ….
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    places: Int[Array, "B T"] | None = None


class Output(NamedTuple):
    """The last hidden states, what blocks report by name (stacked over layers), and the cache."""

    hidden: Float[Array, "B T D"]
    reports: dict[str, Any]
    cache: Any


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
    """A causal language model. Positions default to 0, 1, …; segments to one a row."""

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Any = None,
    ) -> Output: ...

    def unembed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]: ...

    def cache(self, batch: int, length: int) -> Any: ...


@runtime_checkable
class Scoring(Protocol):
    """A decoder that gives the log-probabilities of targets without holding all their scores.

    The results are the log-probability and log Σ exp for each place, in float32. The gradient of
    Σ weights · (−log p + z_loss · log²Z), or a multiple, is to be expected: it may be prepared.
    """

    def logprobs(
        self,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"] | None = None,
        z_loss: float = 0.0,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]: ...


@runtime_checkable
class Sharing(Protocol):
    """A decoder that can tell how devices that share a sequence attend to each other's tokens."""

    def exchange(self, length: int) -> Chosen | None: ...


def context_of(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
) -> Context:
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return Context(positions, segments)
