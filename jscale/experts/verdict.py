"""A verdict on each layer of experts: how it is now, since when, why, and what may cure it.

A pure function of what was counted and of the recipe: the same run has the same verdicts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jscale.experts.causes import Advice, Case, Cause, of_drops, of_overflow, of_uneven_use
from jscale.experts.figures import Figures, figures, imbalance
from jscale.experts.journal import Entry
from jscale.experts.layer import Layer, merged
from jscale.experts.onset import COLLAPSED, MOVED, UNEVEN, Course, course, window
from jscale.experts.setting import Setting, setting_for
from jscale.experts.sharing import ALONE, Sharing

DROPPED = 0.01  # share of choices: one of a hundred, or more
NAMED = 4  # dead experts that are named, not only counted
BY_STEP = ("most", "least", "variation", "effective")  # figures that are means over steps


class Finding(NamedTuple):
    """One thing that is not well with a layer, in words, and what is said to it."""

    words: str
    advice: Advice | None


@dataclass(frozen=True, eq=False)
class Verdict:
    """A layer: its newest steps as one, their figures, and what is not well, the worst first."""

    name: str
    layer: Layer
    figures: Figures  # of loads the means over steps, and of the rest of all of them
    devices: int  # that share its experts
    imbalance: float  # load of the busiest of them over the mean, the mean over steps
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def words(self) -> str:
        return "; ".join(finding.words for finding in self.findings) or "ok"


def verdicts(
    entries: Sequence[Entry], settings: Sequence[Setting], sharing: Sharing = ALONE
) -> tuple[Verdict, ...]:
    """The verdict on each layer to which anything was routed, in the order of the newest step."""
    return tuple(
        _verdict(seen, _newest(seen), settings, sharing.of(name))
        for name, seen in _by_layer(entries).items()
        if seen
    )


def verdicts_at_once(
    entries: Sequence[Entry], settings: Sequence[Setting], sharing: Sharing = ALONE
) -> tuple[Verdict, ...]:
    """The same of parts of data that the same weights saw, in no order: nothing has a beginning."""
    return tuple(
        _verdict([(0, merged(layers))], layers, settings, sharing.of(name))
        for name, seen in _by_layer(entries).items()
        if (layers := [layer for _, layer in seen])
    )


Seen = list[tuple[int, Layer]]  # a layer by step


def _by_layer(entries: Sequence[Entry]) -> dict[str, Seen]:
    """The steps in which anything was routed, by the layers of the newest."""
    found: dict[str, Seen] = {x.name: [] for x in entries[-1].layers} if entries else {}
    for entry in entries:
        for layer in entry.layers:
            if layer.name in found and layer.chosen.sum():
                found[layer.name].append((entry.step, layer))
    return found


def _newest(seen: Seen) -> list[Layer]:
    return [layer for _, layer in seen[-window(len(seen)) :]]


def _verdict(
    seen: Seen, newest: Sequence[Layer], settings: Sequence[Setting], devices: int
) -> Verdict:
    steps, layers = [step for step, _ in seen], [layer for _, layer in seen]
    now, each = merged(newest), [figures(layer) for layer in newest]
    means = {name: float(np.mean([getattr(f, name) for f in each])) for name in BY_STEP}
    shown = figures(now)._replace(**means)
    busiest = [imbalance(layer.chosen, devices) for layer in newest]
    setting = setting_for(settings, len(now.chosen))
    case = None if setting is None else Case(shown, setting, steps[-1], max(busiest))
    found = [_use(course(steps, layers)), _dead(shown), _overflow(shown), _drops(shown)]
    told = tuple(
        Finding(words, advise(case) if case else None) for words, advise in filter(None, found)
    )
    return Verdict(now.name, now, shown, devices, float(np.mean(busiest)), told)


def _use(went: Course) -> tuple[str, Cause] | None:
    """How evenly experts are used."""
    if not went.now >= UNEVEN:
        return None
    better = went.highest - went.now >= MOVED
    if went.since is None:
        words = "collapsed" if went.now >= COLLAPSED else "uneven"
    else:
        worse = went.now - went.lowest >= MOVED and not better
        words = f"{'collapsing' if worse else 'uneven'} since step {went.since:,}"
    return f"{words}, recovering" if better else words, of_uneven_use


def _dead(seen: Figures) -> tuple[str, Cause] | None:
    """Experts that hardly anybody chooses."""
    if not seen.dead:
        return None
    more = len(seen.dead) - NAMED
    named = ", ".join(map(str, seen.dead[:NAMED])) + (f" and {more} more" if more > 0 else "")
    return f"dead expert{'s' if len(seen.dead) > 1 else ''} {named}", of_uneven_use


def _overflow(seen: Figures) -> tuple[str, Cause] | None:
    """Choices that made steps to be done again."""
    return ("overflowing", of_overflow) if seen.overflow > 0 else None


def _drops(seen: Figures) -> tuple[str, Cause] | None:
    return (f"dropping {seen.dropped:.1%}", of_drops) if seen.dropped >= DROPPED else None


def advised(found: Iterable[Verdict]) -> list[tuple[Advice, list[str]]]:
    """Advice on the same fields once, as the layer that needs most has it, with the layers' names.

    In the order in which layers need it.
    """
    out: dict[str, tuple[Advice, list[str]]] = {}
    for verdict in found:
        for advice in [f.advice for f in verdict.findings if f.advice is not None]:
            known, names = out.setdefault(advice.about, (advice, []))
            out[advice.about] = max(known, advice, key=lambda a: a.size), names
            if verdict.name not in names:
                names.append(verdict.name)
    return list(out.values())
