"""Layers that see a window of tokens, in turns with layers that see all before."""

from dataclasses import dataclass

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels.attention import CAUSAL, Mask

KINDS = ("local", "global")


@dataclass(frozen=True)
class Windows:
    """Which layers see only a window, and how they rotate.

    Raises:
        ConfigError: a window below 1, no turns, or a kind of layer that is neither.
    """

    window: int  # tokens that a local layer sees, one's own among them
    turns: tuple[str, ...] = KINDS  # "local" and "global" layers, in turns
    rope: float | None = None  # base of local layers' rotary frequencies; None: that of all

    def __post_init__(self) -> None:
        Mask(window=self.window)
        if not self.turns:
            raise ConfigError("turns must name one kind of layer at least: local or global")
        for kind in self.turns:
            if kind not in KINDS:
                raise ConfigError(f"no kind of layer {kind!r}; {did_you_mean(kind, KINDS)}")

    def of(self, layers: int) -> tuple[str, ...]:
        """The kind of each layer.

        >>> Windows(8, ("local", "local", "global")).of(4)
        ('local', 'local', 'global', 'local')
        """
        return tuple(self.turns[i % len(self.turns)] for i in range(layers))

    def mask(self, kind: str) -> Mask:
        """What attention of such a layer sees."""
        return Mask(window=self.window) if kind == "local" else CAUSAL


def turns_of(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest turns that give these kinds of layers.

    >>> turns_of(("local", "global", "local", "global", "local"))
    ('local', 'global')
    """
    whole = range(len(kinds))
    fits = lambda n: all(kinds[i] == kinds[i % n] for i in whole)
    return kinds[: next(n for n in range(1, len(kinds) + 1) if fits(n))]
