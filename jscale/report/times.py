"""Where the time of a run went, over all its starts, in a few groups that add up."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jscale.report.read import Account, items, number, part
from jscale.run.clock import OTHER

GROUPS = {
    "training steps": "steps",
    "compiling the train step": "compile",
    "waiting for data": "data",
    "reading the data": "data",
    "saving": "save",
    "waiting for the save": "save",
    "evaluating": "evaluate",
    "sampling": "sample",
    "making the model": "start",
    "restoring": "start",
    "measuring the machine": "start",
    OTHER: "other",
}
WORDS = {
    "steps": "training steps",
    "compile": "compiling the step",
    "data": "reading and waiting for data",
    "save": "saving checkpoints",
    "evaluate": "evaluating",
    "sample": "writing samples",
    "start": "making or restoring the model",
    "other": "other",
    "lost": "after the last record of a start that was killed",
}


class Share(NamedTuple):
    """A group of phases and its seconds."""

    group: str
    seconds: float

    @property
    def words(self) -> str:
        return WORDS[self.group]


def shares(account: Account) -> list[Share]:
    """Seconds by group, in the order of `WORDS`; together they are all the time of all starts."""
    found = dict.fromkeys(WORDS, 0.0)
    ends = ends_of(account)
    for start, end in zip(account.starts, ends, strict=True):
        known = 0.0
        for phase, value in part(start.get("seconds")).items():
            found[group_of(phase)] += number(value) or 0.0
            known += number(value) or 0.0
        began = number(start.get("began"))
        if began is not None:
            found["lost"] += max(0.0, end - began - known - 0.5)  # rounded, and ticks of the clock
    return [Share(group, seconds) for group, seconds in found.items() if seconds > 0]


def group_of(phase: str) -> str:
    return "evaluate" if phase.startswith("task ") else GROUPS.get(phase, "other")


def ends_of(account: Account) -> list[float]:
    """When each start was last heard of, by its record or by its numbers, in seconds since 1970."""
    moments = [t for metric in account.metrics.values() for t in metric.times.tolist()]
    begins = [number(start.get("began")) for start in account.starts]
    ends: list[float] = []
    for i, start in enumerate(account.starts):
        begin, after = begins[i], next((b for b in begins[i + 1 :] if b is not None), float("inf"))
        written = number(start.get("written"))
        heard = [t for t in moments if begin is not None and begin <= t < after]
        ends.append(max([*heard, *(t for t in (written, begin) if t is not None)], default=0.0))
    return ends


def newest(account: Account, key: str) -> Any:
    """What the latest start that knows it says of `key`."""
    return next((s[key] for s in reversed(account.starts) if s.get(key) is not None), None)


def compiled(account: Account) -> list[Mapping[str, Any]]:
    """Every compilation of the step, of all starts."""
    return [part(c) for start in account.starts for c in items(start.get("compiled"))]
