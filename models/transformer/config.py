"""What the Transformers' configs have in common, and the checks of their sizes."""

from dataclasses import dataclass, replace
from typing import Any

from jscale.errors import ConfigError, did_you_mean
from jscale.models.attention import Heads
from jscale.models.feed import Drop, Style
from jscale.models.initial import scheme_of
from jscale.models.layers import check_remat
from jscale.models.moe import Feeds, check_feeds
from jscale.models.norms import Layer, Norm
from jscale.models.positions import (
    Alibi,
    Biased,
    Embedded,
    Learned,
    Position,
    RelativeBias,
    Rotary,
    XPos,
)
from jscale.models.residual import Residual, Stage, SubLN
from jscale.models.transformer.block import Parts
from jscale.models.transformer.pattern import Attends, Dense


def check_choice(field: str, name: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError unless `name` is one of the choices."""
    if name not in choices:
        raise ConfigError(f"no {field} {name!r}; {did_you_mean(name, choices)}")


@dataclass(frozen=True)
class Embedding:
    """What happens to embeddings before the first block."""

    scaled: bool = False  # whether they are multiplied by the root of their size
    norm: bool = False  # whether they are normalised, positions added


@dataclass(frozen=True)
class Body:
    """The choices of one stack, with the defaults of TorchScale."""

    dim: int
    heads: int
    feed: Feeds
    residual: Residual = SubLN()
    positions: tuple[Position, ...] = (Learned(),)
    norm: Norm = Layer()
    drop: Drop = Drop()
    init: str = "torchscale"
    bias: bool = True
    embedding: Embedding = Embedding()
    last_norm: bool = True
    remat: str = "full"
    attends: Attends = Dense()

    def of_kind(self, kind: Any) -> list[Any]:
        """The positions that are of a kind."""
        return [p for p in self.positions if isinstance(p, kind)]

    @property
    def embedded(self) -> list[Embedded]:
        return self.of_kind(Embedded)

    @property
    def biased(self) -> list[Biased]:
        return self.of_kind(Biased)

    def parts(self, stage: Stage) -> Parts:
        """What the blocks of this stack are made of."""
        size = Heads(self.dim, self.heads, self.heads, self.dim // self.heads)
        inner = self.norm if self.residual.inner else None
        gain = self.residual.gain(stage)
        style = Style(scheme_of(self.init), gain, inner, self.drop, stage.decodes)
        rotary = next(iter(self.of_kind(Rotary)), None)
        return Parts(
            *(size, stage, self.residual, self.norm, style, rotary, self.bias), self.attends
        )

    def check(self, *layers: int) -> None:
        """Raises ConfigError where something does not fit."""
        self._check_sizes()
        for count in layers:
            if count < 1:
                raise ConfigError(f"layers must be at least 1, not {count}")
            check_feeds(self.feed, count)
        self._check_positions()
        scheme_of(self.init)
        check_remat(self.remat)
        if not self.attends.even:
            self._check_sparse()

    def _check_sizes(self) -> None:
        for name, size in (("dim", self.dim), ("heads", self.heads)):
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, not {size}")
        if self.dim % self.heads:
            raise ConfigError(f"dim={self.dim} must be a multiple of heads={self.heads}")

    def _check_positions(self) -> None:
        turning, head = self.of_kind(Rotary), self.dim // self.heads
        if any(p.block for p in turning) and self.of_kind(Alibi):
            raise ConfigError("XPos(blockwise=…) and Alibi() both forget with distance: choose one")
        if len(turning) > 1:
            raise ConfigError("positions hold two that turn queries and keys: one is enough")
        if turning and head % 2:
            raise ConfigError(f"the head size must be even for rotation, not {head}")

    def _check_sparse(self) -> None:
        kind = type(self.attends).__name__
        if self.drop.attention:
            raise ConfigError(f"attends={kind} has no probabilities to drop: drop.attention=0.0")
        for p in self.positions:
            if isinstance(p, RelativeBias) or (isinstance(p, XPos) and p.blockwise):
                raise ConfigError(f"attends={kind} and {type(p).__name__} cannot go together: {p}")


def body_of(config: Any) -> Body:
    """The choices that a config has in its fields."""
    names = [name for name in Body.__dataclass_fields__ if hasattr(config, name)]
    return Body(**{name: getattr(config, name) for name in names})


def unblocked(body: Body) -> Body:
    """The choices for an encoder, which has no blockwise causal attention.

    An encoder-decoder with `XPos(blockwise=…)` has it in its decoder.
    """
    free = tuple(replace(p, blockwise=None) if isinstance(p, XPos) else p for p in body.positions)
    return replace(body, positions=free)
