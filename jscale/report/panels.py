"""Which curves are drawn, together with which, and the numbers behind them for the page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jscale.pictures.chart import Chart, Series, seconds_axis
from jscale.pictures.frame import Axis, Stroke, stroke_of
from jscale.pictures.markup import Markup, element
from jscale.pictures.thin import thinned
from jscale.report.read import Account, Metric

POINTS = 800  # of one curve on a page of one run
SMALL, LARGE = (300, 190), (880, 320)  # pixels
FORECASTS = {"train/eta_seconds"}  # of no interest once the time is over
MAIN = ("train/loss", "heldout/loss")
SPEED = {"train/tokens_per_second", "train/step_seconds", "train/mfu"}
PERCENT = Axis("", 0.01, "%")
KINDS = ("step", "tokens", "seconds")


@dataclass(frozen=True)
class Curve:
    """A metric of one of the runs, with the name it has in its chart."""

    label: str
    run: int
    metric: str
    stroke: Stroke | None = None


@dataclass(frozen=True)
class Panel:
    """A chart: a title and its curves."""

    title: str
    curves: tuple[Curve, ...]
    y: Axis = Axis()


def loss_panel(accounts: Sequence[Account], names: Sequence[str]) -> Panel | None:
    """The loss in training and on held-out text, of all runs."""
    kinds = {"train/loss": "training", "heldout/loss": "held out"}
    several = len(accounts) > 1
    curves = tuple(
        Curve(f"{names[i]}, {words}" if several else words, i, metric, run_stroke(i, k))
        for k, (metric, words) in enumerate(kinds.items())
        for i, account in enumerate(accounts)
        if metric in account.metrics
    )
    if not several:
        curves = tuple(replace(curve, stroke=None) for curve in curves)
    return Panel("Loss", curves) if curves else None


def run_stroke(run: int, kind: int) -> Stroke:
    """A colour for each run, dashes for its second kind of curve."""
    return Stroke(run % 8, "2 3" if kind else stroke_of(run).dash)


def panels(
    accounts: Sequence[Account], names: Sequence[str], metrics: Iterable[str]
) -> list[Panel]:
    """A chart for each metric, with a curve for each run that has it."""
    out = []
    for metric in metrics:
        having = [i for i, account in enumerate(accounts) if metric in account.metrics]
        labels = names if len(accounts) > 1 else [metric]
        curves = tuple(Curve(labels[i], i, metric, stroke_of(i)) for i in having)
        out.append(Panel(title_of(metric), curves, PERCENT if metric.endswith("/mfu") else Axis()))
    return out


def title_of(metric: str) -> str:
    """A metric's name in words.

    >>> title_of("train/grad_norm"), title_of("heldout/loss"), title_of("train/mfu")
    ('grad norm', 'held-out loss', 'MFU')
    """
    group, _, name = metric.partition("/")
    words = {"mfu": "MFU", "rate": "learning rate"}.get(name, name.replace("_", " "))
    words = words.replace(" per second", " per second")
    return {"train": words, "heldout": f"held-out {words}"}.get(group, metric.replace("_", " "))


def sorted_metrics(accounts: Sequence[Account]) -> tuple[list[str], list[str], dict[str, str]]:
    """Metrics to draw, of speed and others, and why the rest is not drawn."""
    names = dict.fromkeys(name for account in accounts for name in account.metrics)
    everything = [*(n for n in MAIN if n in names), *(n for n in names if n not in MAIN)]
    drawn, why = [], {}
    for name in everything:
        having = [a.metrics[name] for a in accounts if name in a.metrics]
        twin = next((o for o in drawn if same(accounts, o, name)), None)
        if name in FORECASTS:
            why[name] = "a forecast, of no interest afterwards"
        elif name not in SPEED and all(is_constant(m) for m in having):
            why[name] = constant_words(having)
        elif twin and name not in SPEED:
            why[name] = f"equal to {twin} at every step"
        else:
            drawn.append(name)
    order = sorted(
        (n for n in drawn if n not in SPEED.union(MAIN)),
        key=lambda n: n.partition("/")[0] != "train",
    )
    return [n for n in drawn if n in SPEED], order, why


def is_constant(metric: Metric) -> bool:
    values = metric.values
    return len(values) > 1 and bool((values == values[0]).all() or np.isnan(values).all())


def constant_words(metrics: Sequence[Metric]) -> str:
    values = dict.fromkeys(f"{float(m.values[0]):.6g}" for m in metrics)
    return f"{' or '.join(values)} at every step"


def same(accounts: Sequence[Account], one: str, other: str) -> bool:
    """Whether two metrics are the same numbers in all runs."""
    for account in accounts:
        a, b = account.metrics.get(one), account.metrics.get(other)
        if a is None or b is None or not np.array_equal(a.steps, b.steps):
            return False
        if not np.allclose(a.values, b.values, rtol=1e-6, atol=0.0, equal_nan=True):
            return False
    return True


class Curves:
    """The numbers of all curves of a page: thinned once, then drawn over each measure.

    `kinds` are the measures that all runs have; the first is shown unless a reader chooses.
    """

    def __init__(self, accounts: Sequence[Account]) -> None:
        self.accounts = accounts
        self.points = max(120, POINTS // len(accounts))
        known = all(account.tokens_per_step for account in accounts)
        self.kinds = KINDS if known else tuple(kind for kind in KINDS if kind != "tokens")
        self.charts: dict[str, list[dict[str, Any]]] = {}
        self.used: dict[tuple[int, str], dict[str, np.ndarray]] = {}

    def numbers(self, run: int, metric: str) -> dict[str, np.ndarray]:
        """The places and values that are kept of a curve: real ones, none in between."""
        if (run, metric) not in self.used:
            account = self.accounts[run]
            found = account.metrics[metric]
            keep = thinned(found.values, self.points)
            kept: dict[str, np.ndarray] = {"step": found.steps[keep], "value": found.values[keep]}
            if "tokens" in self.kinds:
                kept["tokens"] = kept["step"] * (account.tokens_per_step or 0)
            kept["seconds"] = account.elapsed(found.times)[keep].round(2)
            self.used[run, metric] = kept
        return self.used[run, metric]

    def figure(self, panel: Panel, sizes: Sequence[tuple[str, tuple[int, int]]]) -> Markup:
        """A chart over each measure, the first one to be seen, in each of the sizes."""
        key = f"c{len(self.charts)}"
        self.charts[key] = [
            {"label": c.label, "run": c.run, "name": c.metric} for c in panel.curves
        ]
        parts = []
        for kind in self.kinds:
            drawn = [
                element("div", self.chart(panel, kind, size).picture().svg(), class_=name or None)
                for name, size in sizes
            ]
            hidden = None if kind == self.kinds[0] else ""
            parts.append(element("div", drawn, data_x=kind, hidden=hidden))
        words = f"{panel.title}: arrow keys read the values"
        return element("figure", parts, data_chart=key, tabindex=0, aria_label=words)

    def chart(self, panel: Panel, kind: str, size: tuple[int, int]) -> Chart:
        found = [(c, self.numbers(c.run, c.metric)) for c in panel.curves]
        longest = max((float(n[kind].max()) for _, n in found if len(n[kind])), default=0.0)
        x = seconds_axis(longest) if kind == "seconds" else Axis(kind)
        series = [Series(c.label, n[kind], n["value"], c.stroke) for c, n in found]
        return Chart(panel.title, series, x, panel.y, width=size[0], height=size[1])

    def data(self, names: Sequence[str]) -> dict[str, Any]:
        """All that was drawn, for the page's script and for other programs."""
        runs: list[dict[str, Any]] = []
        for i, account in enumerate(self.accounts):
            series: dict[str, Any] = {}
            for metric, found in account.metrics.items():
                kept = self.numbers(i, metric)
                series[metric] = {"count": len(found.steps)} | {
                    key: values.tolist() for key, values in kept.items()
                }
            runs.append({"name": names[i], "path": str(account.path), "series": series})
        return {"runs": runs, "charts": self.charts}

    @property
    def thinned(self) -> bool:
        """Whether any curve had to leave points out."""
        return any(len(m.steps) > self.points for a in self.accounts for m in a.metrics.values())


def buttons(kinds: Sequence[str]) -> Markup:
    """The choice of what the horizontal axes measure; shown only where the script runs."""
    words = {"step": "Steps", "tokens": "Tokens, with padding", "seconds": "Time"}
    made = [
        element("button", words[k], type="button", value=k, aria_pressed=str(k == kinds[0]).lower())
        for k in kinds
    ]
    return element("div", made, class_="choice", role="group", aria_label="horizontal axis")


def finals(found: Mapping[str, Metric]) -> list[tuple[str, Metric]]:
    """The metrics in the order of a table: the loss first, then training, then the others."""
    rest = sorted((n for n in found if n not in MAIN), key=lambda n: n.partition("/")[0] != "train")
    return [(name, found[name]) for name in [*(n for n in MAIN if n in found), *rest]]
