"""How tokens get to experts that devices share: a value of the layer, and what it picks by itself.

Every way gives the same results (`jscale.pallas_kernels.dispatch`); they differ in what is sent and
in what must be held.
"""

# T tokens of one device, C choices per token, D the size of a token, n devices that share experts.

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh import split_over
from jscale.mesh.layout import current
from jscale.models.measured import measured
from jscale.models.sequence import ROWS, ways
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.dispatch import AllToAll, Dispatcher, Gather, Local, OneHot, Ragged

Axis = str | tuple[str, ...]

NEAR = 16  # devices up to which a gather of all tokens is no burden on GPUs


def _all_to_all(axis: Axis, rows: int | None, devices: int) -> Dispatcher:
    """Its bound is for each pair of devices: a room that is not pooled."""
    return AllToAll(axis, None if rows is None else math.ceil(rows / devices))


def _ragged(axis: Axis, rows: int | None, devices: int) -> Dispatcher:
    if not isinstance(axis, str):
        raise ConfigError(
            f"dispatch.by='ragged' works over one mesh axis, and {', '.join(axis)} split the"
            " experts: name all_to_all or gather"
        )
    return Ragged(axis, rows)


WAYS: Mapping[str, Callable[[Axis, int | None, int], Dispatcher]] = {
    "local": lambda axis, rows, devices: Local(rows),
    "one_hot": lambda axis, rows, devices: OneHot(axis, rows),
    "gather": lambda axis, rows, devices: Gather(axis, rows),
    "all_to_all": _all_to_all,
    "ragged": _ragged,
}


@dataclass(frozen=True)
class Dispatch:
    """How tokens get to the devices of their experts, and how many may come to one.

    What finds no room is dropped, and counted. The room is one for all experts of a device and for
    all that send; only that of `all_to_all` is divided evenly among the senders. Two chunks have
    half of it each.

    Raises:
        ConfigError: no such way, a room that is no positive number, or other than 1 or 2 chunks.
    """

    by: str = "auto"  # auto, local, one_hot, gather, all_to_all, ragged
    room: float | None = None  # rows for which a device has room, in even shares; None: any
    chunks: int = 1  # 2: half the tokens are exchanged while experts compute the other half

    def __post_init__(self) -> None:
        if self.by not in ("auto", *WAYS):
            hint = did_you_mean(self.by, ("auto", *WAYS))
            raise ConfigError(f"no way {self.by!r} to dispatch; {hint}")
        if self.room is not None and not 0 < self.room < math.inf:
            raise ConfigError(f"Dispatch.room must be a positive number or None, not {self.room}")
        if self.chunks not in (1, 2):
            raise ConfigError(f"Dispatch.chunks must be 1 or 2, not {self.chunks}")

    @property
    def unbounded(self) -> "Dispatch":
        """The same with room for any choices."""
        return replace(self, room=None)


class Spread(NamedTuple):
    """A layer of experts on a mesh, as each of its devices sees it."""

    axes: tuple[str, ...]  # the mesh axes that split its experts
    ways: tuple[int, ...]  # how many ways each does
    tokens: int  # of one device
    choices: int  # experts that a token uses
    dim: int  # numbers of a token
    weights: int  # numbers of all experts, as far as other mesh axes do not split them
    idle: tuple[str, ...] = ()  # those of `axes` along which devices have the same tokens

    @property
    def devices(self) -> int:
        """How many share the experts."""
        return math.prod(self.ways)

    @property
    def axis(self) -> Axis:
        """The mesh axes as collectives take them."""
        return self.axes[0] if len(self.axes) == 1 else self.axes

    def __str__(self) -> str:
        return " ".join(f"{a}={n}" for a, n in zip(self.axes, self.ways, strict=True))

    @staticmethod
    def under(tokens: int, choices: int, dim: int, weights: int) -> "Spread":
        """Under the current layout, of so many tokens and weights in all."""
        layout, axes = current(), split_over("experts")
        sizes = () if layout is None else tuple(layout.mesh.shape[name] for name in axes)
        idle = tuple(name for name in axes if name not in token_axes())
        over = math.prod(n for name, n in zip(axes, sizes, strict=True) if name in idle)
        here = -(-tokens // (ways("batch") * ways(*ROWS) * over))
        own = weights // ways("experts", None, "mlp")
        return Spread(axes, sizes, here, choices, dim, own, idle)


def token_axes() -> tuple[str, ...]:
    """The mesh axes over which the current layout splits tokens."""
    return (*split_over("batch"), *split_over(*ROWS))


class Picked(NamedTuple):
    """A way to dispatch by name, and why it is the one."""

    by: str
    reason: str


class Way(NamedTuple):
    """How one layer dispatches on its mesh."""

    asked: Dispatch
    picked: Picked
    spread: Spread

    def __str__(self) -> str:
        over = f" over {self.spread}" if self.spread.axes else ""
        more = ", in two chunks" if self.asked.chunks == 2 else ""
        if self.asked.room is not None:
            more += f", with room for {self.asked.room:g} even shares"
        return f"experts{over}: {self.picked.by}{more} ({self.picked.reason})"

    @property
    def gathers(self) -> Axis | None:
        """The mesh axes over which each device gathers the experts' weights, if it does."""
        return self.spread.axis if self.picked.by == "local" and self.spread.axes else None

    def dispatcher(self, choices: int) -> Dispatcher:
        """For tokens of a device that make so many choices in all: an even share of them."""
        room = self.asked.room
        rows = None if room is None else max(1, math.ceil(room * choices))
        if not self.spread.axes:
            return OneHot(rows=rows) if self.picked.by == "one_hot" else Local(rows)
        return WAYS[self.picked.by](self.spread.axis, rows, self.spread.devices)


def way_of(asked: Dispatch, spread: Spread) -> Way:
    """What is asked for, or picked, for a layer under the current layout; logged once."""
    if asked.by == "one_hot" or (spread.axes and asked.by != "auto"):
        picked = Picked(asked.by, "named by the layer")
    else:
        platform = device().platform if spread.axes else ""  # no device need be there to ask
        times = measured(spread, asked.room, WAYS) if spread.axes else None
        picked = choose(platform, spread, asked.room, times)
    way = Way(asked, picked, spread)
    _tell(str(way))
    return way


def choose(
    platform: str,
    spread: Spread,
    room: float | None = None,
    measured: Mapping[str, float] | None = None,
) -> Picked:
    """The fastest way by what was measured (seconds of a step by way), else what sends least.

    >>> choose("gpu", Spread(("expert",), (4,), 8192, 2, 4096, 8 * 3 * 4096 * 14336)).by
    'gather'
    """
    if not spread.axes:
        return Picked("local", "no mesh axis splits them")
    if measured:
        best = min(measured, key=measured.__getitem__)
        return Picked(best, f"measured: {_list(measured, ' s')}")
    if platform == "cpu":
        return Picked("gather", "on CPU")
    sent = sends(spread, room)
    able = {way: sent[way] for way in _able(platform, spread, room)}
    best = min(able, key=able.__getitem__)
    return Picked(best, f"sends least, in numbers of a device: {_list(able)}")


def _list(by_way: Mapping[str, float], unit: str = "") -> str:
    ranked = sorted(by_way.items(), key=lambda item: item[1])
    return ", ".join(f"{way} {value:.2g}{unit}" for way, value in ranked)


def _able(platform: str, spread: Spread, room: float | None) -> tuple[str, ...]:
    """The ways among which the least traffic decides.

    An all-to-all of fixed size pays only with a bound. GPUs' ragged exchange has been measured far
    slower than a gather; far from each other they leave the gather where something else is bounded.
    """
    if platform == "tpu":
        return ("local", "gather", "ragged" if len(spread.axes) == 1 else "all_to_all")
    far = spread.devices > NEAR and room is not None
    return ("local", "all_to_all") if far else ("local", "gather")


def sends(spread: Spread, room: float | None = None) -> dict[str, float]:
    """Numbers that a device receives in a layer's forward and backward pass, by way.

    Weights are gathered twice and their gradients scattered; tokens, results and the gradients of
    both are on the way once each.
    """
    n, rows = spread.devices, spread.tokens * spread.choices
    others = (n - 1) / n
    each = 4 * spread.dim * others
    return {
        "local": 3 * spread.weights * others,
        "gather": each * n * spread.tokens,
        "all_to_all": each * rows * (n if room is None else room),
        "ragged": each * rows,
    }


@lru_cache(maxsize=1024)  # so that each is logged once
def _tell(sentence: str) -> None:
    logging.getLogger("jscale.models").info("%s", sentence)
