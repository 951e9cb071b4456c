"""The section on experts: verdicts, loads over time, curves of the layers."""

# L layers, E experts, C columns.

from collections.abc import Sequence

import numpy as np

from jscale.experts.figures import figures
from jscale.experts.journal import Entry, evenly
from jscale.experts.layer import Layer, short_names
from jscale.experts.setting import settings_of
from jscale.experts.sharing import sharing_of
from jscale.experts.table import HEADER, NUMBERS, advice_words, rows, sharing_words, summary_words
from jscale.experts.verdict import Verdict, verdicts
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis
from jscale.pictures.heat import HeatMap, keys
from jscale.pictures.markup import Markup, element
from jscale.report.panels import LARGE, SMALL
from jscale.report.parts import details, note, section, table
from jscale.report.read import Account

CELLS = 120_000  # of all maps of a page: some 7 bytes each where no two neighbours are alike
COLUMNS = (16, 100)  # of a map over time, at least and at most
LONG = 12  # layers, from which a table shows those first that are not well
SHOWN = 6  # maps that are not folded away


def verdicts_of(account: Account) -> tuple[Verdict, ...]:
    """The verdicts on the layers of a run; none where it has no experts."""
    settings, sharing = settings_of(account.recipe), sharing_of(account.layout)
    return verdicts(account.experts, settings, sharing)


def experts_section(account: Account) -> Markup | None:
    """What experts had to do, in a run that has them."""
    found = verdicts_of(account)
    if not found:
        return None
    entries = account.experts
    words = [summary_words(found), sharing_words(found)]
    fixes = [advice_part(*advice) for advice in advice_words(found)]
    drawn = [element("figure", chart.picture().svg()) for chart in charts(entries)]
    return section(
        "experts",
        "Experts",
        note(" ".join(f"{w[0].upper()}{w[1:]}." for w in words if w)),
        fixes,
        tables_part(found),
        maps_part(entries, found),
        element("div", drawn, class_="charts"),
    )


def advice_part(cause: str, where: str, fix: str) -> Markup:
    """A likely cause, the layers that it is about, and the override that may help."""
    tried = (" Try ", element("code", fix), ".") if fix else None
    return element("p", f"{cause[0].upper()}{cause[1:]} ({where}).", tried)


def tables_part(found: Sequence[Verdict]) -> list[Markup]:
    """The table of all layers; of many, those that are not well, and the others folded away."""
    lines = list(zip(found, rows(found), strict=True))
    if len(lines) <= LONG:
        return [table(HEADER, [row for _, row in lines], numbers=NUMBERS)]
    bad = [row for verdict, row in lines if not verdict.ok]
    folded = details("the table of all layers", table(HEADER, rows(found), numbers=NUMBERS))
    return [table(HEADER, bad, numbers=NUMBERS), folded] if bad else [folded]


def maps_part(entries: Sequence[Entry], found: Sequence[Verdict]) -> list[Markup]:
    """All layers now, and each of them over time, those that are not well first."""
    maps = {v.name: map_of(v.name, entries, found) for v in found}
    ranked = sorted(found, key=lambda verdict: (verdict.ok, -verdict.figures.collapse))
    first = {verdict.name for verdict in ranked[:SHOWN]}
    drawn = {name: element("figure", m.picture().svg()) for name, m in maps.items()}
    grid = lambda names: element("div", [drawn[name] for name in names], class_="charts")
    said = [element("span", mark, words, class_="key") for mark, words in keys()]
    legend = note("Load over an even share, in kept steps: ", said)
    rest = [name for name in maps if name not in first]
    out = [legend, *overview(found), grid([name for name in maps if name in first])]
    return [*out, details(f"the other {len(rest)} layers", grid(rest))] if rest else out


def overview(found: Sequence[Verdict]) -> list[Markup]:
    """One map of all layers with as many experts, by their newest steps."""
    out = []
    short = short_names([verdict.name for verdict in found])
    for count in dict.fromkeys(len(v.layer.chosen) for v in found):
        alike = [v for v in found if len(v.layer.chosen) == count]
        if len(alike) < 2:
            continue
        loads = np.stack([shares(v.layer) for v in alike])
        names = short[alike[0].name][-4:], short[alike[-1].name][-4:]
        tall = 36 + len(alike) * max(5, min(16, 240 // len(alike)))
        title = f"now: {len(alike)} layers × {count} experts"
        ends = ("expert 0", f"expert {count - 1}")
        drawn = HeatMap(title, loads, names, ends, LARGE[0], tall).picture().svg()
        out.append(element("figure", drawn, class_="hero"))
    return out


def map_of(name: str, entries: Sequence[Entry], found: Sequence[Verdict]) -> HeatMap:
    """The loads of one layer: an expert a row, a kept step (of those that fit) a column."""
    cells = sum(len(verdict.layer.chosen) for verdict in found)
    most = min(max(CELLS // cells, COLUMNS[0]), COLUMNS[1])
    seen = evenly([(e.step, x) for e in entries for x in e.layers if x.name == name], most)
    loads = np.stack([shares(layer) for _, layer in seen], 1)
    count, ends = len(loads), (seen[0][0], seen[-1][0])
    tall = 36 + max(96, min(192, 10 * count))
    title = f"layer {short_names([v.name for v in found])[name]}"
    steps = f"step {ends[0]:,}", f"{ends[1]:,}"
    return HeatMap(title, loads, ("0", str(count - 1)), steps, SMALL[0], tall)


def shares(layer: Layer) -> np.ndarray:
    """The loads over an even share; NaN where nothing was routed."""
    total = layer.chosen.sum()
    return layer.chosen * len(layer.chosen) / total if total else np.full(len(layer.chosen), np.nan)


CURVES = {
    "maxvio": lambda f: f.maxvio,
    "effective experts": lambda f: f.effective,
    "router's highest score": lambda f: f.highest,
    "logΣexp of scores": lambda f: f.log_sum,
    "best score over second": lambda f: f.margin,
    "choices dropped": lambda f: 100 * f.dropped,
}
PERCENT = {"choices dropped"}


def charts(entries: Sequence[Entry]) -> list[Chart]:
    """Each figure over the steps: the smallest, the mean and the largest of all layers."""
    steps = [entry.step for entry in entries]
    each = [[figures(layer) for layer in entry.layers] for entry in entries]
    out = []
    for title, of in CURVES.items():
        values = np.array([_spread([of(f) for f in layers]) for layers in each])
        if title in PERCENT and not np.nansum(values):
            continue
        names = ("lowest layer", "mean", "highest layer") if len(each[-1]) > 1 else ("",)
        series = [Series(n or title, steps, values[:, i]) for i, n in enumerate(names)]
        axis = Axis("", 1.0, "%") if title in PERCENT else Axis()
        out.append(Chart(title, series, y=axis, width=SMALL[0], height=SMALL[1] + 16))
    return out


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return np.nan, np.nan, np.nan
    return min(known), sum(known) / len(known), max(known)
