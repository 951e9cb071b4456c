"""How devices that share a sequence let their tokens attend to each other's: a value of the rules.

Attention is the one place of a network where tokens of one device need those of another. What is
exchanged there depends on heads and lengths, which no table of axes can say; so a value says it.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jscale.errors import ConfigError

LONG = 2048  # tokens of a device from which a part is attended to for longer than it is on its way


@dataclass(frozen=True)
class Gather:
    """Every device gathers all keys and values: the least waiting, all keys in memory."""

    def __str__(self) -> str:
        return "gather"


@dataclass(frozen=True)
class Ring:
    """Keys and values go round, sent while the last are attended to: memory of a few parts."""

    def __str__(self) -> str:
        return "ring"


@dataclass(frozen=True)
class AllToAll:
    """Each device gets some heads of the whole sequence, which must divide over the mesh axis.

    Where the sequence is split over several mesh axes, this is over the last of them, and `within`
    over those before it: in rings across slow links, say. None: chosen by the length.
    """

    within: Gather | Ring | None = None

    def __str__(self) -> str:
        return "all-to-all" if self.within is None else f"all-to-all within a {self.within}"


Exchange = Gather | Ring | AllToAll


class Shared(NamedTuple):
    """A sequence that devices share, as each of them sees it."""

    axes: tuple[str, ...]  # the mesh axes that split it, in its order
    ways: tuple[int, ...]  # how many ways each does
    length: int  # tokens of one device
    heads: int  # query heads of one device
    kv_heads: int  # key/value heads of one device

    def __str__(self) -> str:
        return " ".join(f"{a}={n}" for a, n in zip(self.axes, self.ways, strict=True))


class Chosen(NamedTuple):
    """An exchange, why it is the one, and the sequence that is shared so."""

    exchange: Exchange
    reason: str
    shared: Shared

    def __str__(self) -> str:
        return f"attention over {self.shared}: {self.exchange} ({self.reason})"


def choose_exchange(shared: Shared, named: Exchange | None = None) -> Chosen:
    """What the rules name, with what they leave open; by shape where they name nothing.

    All-to-all where heads divide, for it sends least and gives all devices the same work; else a
    ring where parts are long enough to hide the sending; else a gather.

    Raises:
        ConfigError: all-to-all is named, and heads do not divide.
    """
    reason = "named by the rules"
    if isinstance(named, AllToAll) and shared.heads % shared.ways[-1]:
        axis = f"{shared.axes[-1]}={shared.ways[-1]}"
        raise ConfigError(
            f"rules.exchange={named!r} needs heads that divide over {axis}, and a device has"
            f" {shared.heads}: name Ring() or Gather(), or another mesh"
        )
    if named is None:
        named, reason = _by_shape(shared)
    if isinstance(named, AllToAll):
        outer = len(shared.axes) > 1
        inside = (named.within or _by_length(shared.length)[0]) if outer else None
        named = AllToAll(inside)
    return Chosen(named, reason, shared)


def _by_shape(shared: Shared) -> tuple[Exchange, str]:
    ways, N, K = shared.ways[-1], shared.heads, shared.kv_heads
    heads = f"{N} heads and {K} key/value heads of a device"
    if N % ways == 0 and K % ways == 0:
        return AllToAll(), f"{heads} divide by {ways}"
    exchange, why = _by_length(shared.length)
    return exchange, f"{heads} do not divide by {ways}; {why}"


def _by_length(length: int) -> tuple[Gather | Ring, str]:
    if length >= LONG:
        return Ring(), f"{length} tokens on a device hide what is sent"
    return Gather(), f"{length} tokens on a device, under {LONG}, would not hide a ring's sends"
