"""Verdicts as a table and as sentences, for the terminal and for a report."""

from collections.abc import Iterable, Sequence

from jscale.experts.figures import waiting
from jscale.experts.layer import short_names
from jscale.experts.verdict import Verdict, advised

HEADER = (
    "layer", "experts", "maxvio", "min/mean", "CV", "effective", "dead", "logit max", "logΣexp",
    "margin", "bias range", "dropped", "verdict",
)  # fmt: skip
NUMBERS = HEADER[1:-1]
LISTED = 8  # layers that a sentence names


def rows(found: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """A row for each layer, under `HEADER`."""
    short = short_names([verdict.name for verdict in found])
    return [(short[verdict.name], *_cells(verdict)) for verdict in found]


def _cells(verdict: Verdict) -> tuple[str, ...]:
    f = verdict.figures
    span = "" if f.correction is None else f"{f.correction[1] - f.correction[0]:.3f}"
    return (
        str(len(verdict.layer.chosen)),
        f"{f.maxvio:.2f}",
        f"{f.least:.2f}",
        f"{f.variation:.2f}",
        f"{f.effective:.2f}",
        str(len(f.dead)),
        f"{f.highest:.1f}",
        f"{f.log_sum:.1f}",
        f"{f.margin:.2f}",
        span,
        "" if not f.dropped else f"{f.dropped:.1%}",
        verdict.words,
    )


def sharing_words(found: Sequence[Verdict]) -> str:
    """How unevenly devices that share experts are loaded, and what that costs; "" if none do."""
    shared = [verdict for verdict in found if verdict.devices > 1]
    if not shared:
        return ""
    counts = " or ".join(map(str, sorted({verdict.devices for verdict in shared})))
    each = [verdict.imbalance for verdict in shared]
    worst = short_names([v.name for v in found])[max(shared, key=lambda v: v.imbalance).name]
    mean = sum(each) / len(each)
    return (
        f"{counts} devices share the experts: the busiest has {mean:.2f} times the mean load"
        f" ({max(each):.2f} in layer {worst}), so that up to {waiting(each):.0%} of the time of"
        " experts is waiting for it"
    )


def advice_words(found: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Cause, layers and fix, each advice once; the fix is "" where none is known."""
    short = short_names([verdict.name for verdict in found])
    return [
        (advice.cause, layers_words([short[name] for name in names], len(found)), advice.fix)
        for advice, names in advised(found)
    ]


def layers_words(names: Sequence[str], of: int) -> str:
    """Which layers, in a few words.

    >>> layers_words(["3", "5"], 9), layers_words(["3"], 9), layers_words(["0", "1"], 2)
    ('layers 3, 5', 'layer 3', 'all layers')
    """
    if len(names) == of:
        return "all layers" if of > 1 else "the layer"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"layer{'s' if len(names) > 1 else ''} {', '.join(names[:LISTED])}{more}"


def summary_words(found: Iterable[Verdict]) -> str:
    """How many layers are well.

    >>> summary_words([])
    'no layer of experts'
    """
    all_of = list(found)
    if not all_of:
        return "no layer of experts"
    bad = sum(not verdict.ok for verdict in all_of)
    count = len(all_of)
    kinds = f"{count} layer{'s' if count > 1 else ''} of experts"
    return f"{kinds}, all well" if not bad else f"{kinds}, {bad} of them not well"
