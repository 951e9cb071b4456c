"""The report on several runs: curves over each other, last values, what their recipes differ in."""

import os
from collections import Counter
from collections.abc import Sequence

from jscale.metrics.figures import duration
from jscale.pictures.markup import Child, Markup, element, joined
from jscale.pictures.page import page
from jscale.report.overview import state_of
from jscale.report.panels import SMALL, Curves, finals, panels, sorted_metrics
from jscale.report.parts import exact, note, section, swatch, table
from jscale.report.read import Account, devices_words
from jscale.report.sections import curves_section, peak_words
from jscale.report.settings import differing
from jscale.report.story import foot
from jscale.report.times import WORDS, shares

CONTENTS = {
    "runs": "Runs",
    "curves": "Curves",
    "speed": "Speed",
    "finals": "Last values",
    "time": "Time",
    "recipes": "Recipes",
}


def comparison_page(accounts: Sequence[Account]) -> str:
    """The page of several runs, as HTML."""
    names, curves = names_of(accounts), Curves(accounts)
    links = [element("a", title, href=f"#{key}") for key, title in CONTENTS.items()]
    title = f"{len(accounts)} runs compared"
    content = [
        element(
            "header",
            element("h1", title),
            element("p", ", ".join(names)),
            element("nav", links, aria_label="contents"),
        ),
        runs_section(accounts, names),
        curves_section(accounts, names, curves),
        speed_section(accounts, names, curves),
        finals_section(accounts, names),
        time_section(accounts, names),
        recipes_section(accounts, names),
        foot(),
    ]
    return page(title, joined(content), curves.data(names))


def names_of(accounts: Sequence[Account]) -> list[str]:
    """A name for each run that no other has: its own, else its folder, else its whole path."""
    names = [account.name for account in accounts]
    for other in (lambda a: a.path.name, lambda a: str(a.path), lambda a: os.path.abspath(a.path)):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else other(account)
            for name, account in zip(names, accounts, strict=True)
        ]
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} ({i})" for i, n in enumerate(names, 1)]


def runs_section(accounts: Sequence[Account], names: Sequence[str]) -> Markup:
    rows: list[list[Child]] = []
    for i, (name, account) in enumerate(zip(names, accounts, strict=True)):
        rows.append(
            [
                [swatch(i), name],
                state_of(account)[0],
                str(account.path),
                devices_words(account.environment),
            ]
        )
    found = [
        element("p", f"{n}: {r}", class_="wrong")
        for n, a in zip(names, accounts, strict=True)
        for r in a.remarks
    ]
    return section("runs", "Runs", table(("run", "state", "folder", "devices"), rows), found)


def speed_section(accounts: Sequence[Account], names: Sequence[str], curves: Curves) -> Markup:
    speed, _, _ = sorted_metrics(accounts)
    drawn = [curves.figure(panel, [("", SMALL)]) for panel in panels(accounts, names, speed)]
    words = dict.fromkeys(peak_words(account) for account in accounts)
    return section("speed", "Speed", map(note, words), element("div", drawn, class_="charts"))


def finals_section(accounts: Sequence[Account], names: Sequence[str]) -> Markup:
    """Each metric's last value in each run, and the step that it is from."""
    union = {name: metric for account in accounts for name, metric in account.metrics.items()}
    rows: list[list[Child]] = []
    for metric, _ in finals(union):
        cells: list[Child] = []
        for account in accounts:
            found = account.metrics.get(metric)
            cells.append(exact(float(found.values[-1])) if found else "–")
        rows.append([metric, *cells])
    steps = [exact(account.step) for account in accounts]
    header = ("metric", *names)
    whole = table(header, [["last step", *steps], *rows], numbers=names, codes=("metric",))
    return section("finals", "Last values", whole)


def time_section(accounts: Sequence[Account], names: Sequence[str]) -> Markup:
    found = [{s.group: s.seconds for s in shares(account)} for account in accounts]
    rows: list[list[Child]] = []
    for group, words in WORDS.items():
        if any(group in each for each in found):
            rows.append([words, *(seconds_cell(each.get(group)) for each in found)])
    rows.append(["together", *(seconds_cell(sum(each.values())) for each in found)])
    missing = [name for name, each in zip(names, found, strict=True) if not each]
    said = note(f"Not recorded: {', '.join(missing)}.") if missing else None
    return section("time", "Time by phase", said, table(("phase", *names), rows, numbers=names))


def seconds_cell(seconds: float | int | None) -> Child:
    return exact(round(float(seconds), 3), duration(seconds)) if seconds else "–"


def recipes_section(accounts: Sequence[Account], names: Sequence[str]) -> Markup:
    rows = [[path, *values] for path, values in differing([a.recipe for a in accounts])]
    if not rows:
        return section("recipes", "Recipes", note("All have the same recipe."))
    header = ("setting", *names)
    return section("recipes", "What the recipes differ in", table(header, rows, codes=header))
