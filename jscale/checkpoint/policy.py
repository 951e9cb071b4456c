"""When to save a checkpoint and which ones to keep."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jscale.errors import ConfigError


@dataclass(frozen=True)
class Checkpoints:
    """When a run is saved and which of its steps are kept.

    every: a save each so many steps.
    minutes: a save also when so many minutes have passed since the last one; None for steps alone.
    keep: how many of the newest steps are kept.
    keep_every: steps that are a multiple of this are kept for ever; None for none.
    keep_hours: the first step of each such span of time is kept for ever; None for none.
    """

    every: int = 1000
    minutes: float | None = None
    keep: int = 3
    keep_every: int | None = None
    keep_hours: float | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every", "minutes", "keep_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                hint = "" if name in ("every", "keep") else ", or None for never"
                raise ConfigError(f"checkpoints.{name} is {value}; it must be above 0{hint}")

    def kept(self, saved: Mapping[int, float]) -> frozenset[int]:
        """The steps to keep among those `saved` (step to seconds since 1970).

        >>> Checkpoints(keep=2, keep_every=100).kept({s: 0.0 for s in (50, 100, 150, 200, 250)})
        frozenset({200, 250, 100})
        """
        steps = sorted(saved)
        kept = set(steps[-self.keep :])
        if self.keep_every is not None:
            kept.update(step for step in steps if step % self.keep_every == 0)
        if self.keep_hours is not None:
            kept.update(_firsts((step, saved[step] // (3600 * self.keep_hours)) for step in steps))
        return frozenset(kept)


def _firsts(spans: Iterable[tuple[int, float]]) -> set[int]:
    """The first step of each span of time."""
    first: dict[float, int] = {}
    for step, span in spans:
        first.setdefault(span, step)
    return set(first.values())
