"""The sections of a report on one run."""

from collections.abc import Sequence

from jscale.checkpoint.sizes import readable
from jscale.metrics.figures import duration
from jscale.pictures.markup import Child, Markup, element
from jscale.report.panels import (
    LARGE,
    SMALL,
    Curves,
    buttons,
    finals,
    loss_panel,
    panels,
    sorted_metrics,
)
from jscale.report.parts import bar, details, exact, note, section, swatch, table
from jscale.report.read import Account, devices_words, moment, number, part, whole
from jscale.report.times import compiled, newest, shares


def curves_section(accounts: Sequence[Account], names: Sequence[str], curves: Curves) -> Markup:
    """The loss, large, and every other metric that says anything, small."""
    _, others, why = sorted_metrics(accounts)
    loss = loss_panel(accounts, names)
    content: list[Child] = [buttons(curves.kinds)]
    if loss:
        sizes = [("large", LARGE), ("small", (340, 260))]
        content.append(element("div", curves.figure(loss, sizes), class_="hero"))
    made = [curves.figure(panel, [("", SMALL)]) for panel in panels(accounts, names, others)]
    content.append(element("div", made, class_="charts"))
    if why:
        said = "; ".join(f"{name} ({reason})" for name, reason in why.items())
        content.append(note(f"Not drawn: {said}."))
    if curves.thinned:
        content.append(
            note(
                f"Of longer curves about {curves.points} points are drawn: the smallest and the"
                " largest value of each stretch, none averaged."
            )
        )
    return section("curves", "Curves", content)


def last_values(account: Account) -> Markup:
    """Every metric's newest value and its extremes."""
    rows = []
    for name, metric in finals(account.metrics):
        values = metric.values.tolist()
        finite = [v for v in values if abs(v) != float("inf") and v == v]
        low, high = (min(finite), max(finite)) if finite else (float("nan"), float("nan"))
        at = int(metric.steps[-1])
        rows.append((name, exact(values[-1]), exact(low), exact(high), exact(at), str(len(values))))
    header = ("metric", "last", "smallest", "largest", "at step", "values")
    return details("all numbers", table(header, rows, numbers=header[1:], codes=("metric",)))


def speed_section(account: Account, curves: Curves) -> Markup:
    """Tokens and steps a second, and what part of the hardware's arithmetic the model used."""
    speed, _, _ = sorted_metrics([account])
    made = panels([account], [account.name], speed)
    words = peak_words(account)
    drawn = [curves.figure(panel, [("", SMALL)]) for panel in made]
    return section("speed", "Speed", note(words), element("div", drawn, class_="charts"))


def peak_words(account: Account) -> str:
    """What MFU is measured against on this device."""
    peak, devices = part(newest(account, "peak")), part(newest(account, "devices"))
    kind = devices.get("kind") or part(account.environment.get("devices")).get("kind") or "unknown"
    flops = number(peak.get("flops"))
    if flops is None:
        return f"No peak known for this device ({kind}), so there is no share of it."
    if peak.get("origin") == "known":
        tera = f"{flops / 1e12:,.0f} TFLOP/s"
        return f"MFU is the model's arithmetic as a share of {tera}, the peak of a {kind}."
    return (
        f"No peak known for this device ({kind}). MFU here is the model's arithmetic as a share of"
        f" {flops / 1e9:,.0f} GFLOP/s on each device, which a plain matrix multiplication reached"
        " when the run began."
    )


def memory_section(account: Account) -> Markup:
    """Bytes on one device: the parts of the state, the step as compiled, what the driver saw."""
    rows: list[tuple[str, int]] = []
    for name, size in part(account.layout.get("bytes_per_device")).items():
        rows += [(str(name), n) for n in (whole(size),) if n]
    memory = [n for c in compiled(account) for n in (whole(c.get("memory")),) if n]
    rows += [("the step, as compiled", n) for n in memory[-1:]]
    held = whole(newest(account, "memory_in_use"))
    rows += [("most that was in use", held)] if held else []
    if not rows:
        return section("memory", "Memory", note("Not recorded."))
    top = max(size for _, size in rows) or 1
    lines = [
        (name, bar([(size / top, 0)], f"{name}: {readable(size)}"), exact(size, readable(size)))
        for name, size in rows
    ]
    body = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", drawn, class_="meter"),
            element("td", words, class_="number"),
        )
        for name, drawn, words in lines
    ]
    said = [note("Bytes on one device. The compiled step holds the state and its activations.")]
    if memory and held is None:
        said.append(note("The driver of this device does not count what is in use."))
    drawn = element("div", element("table", element("tbody", body)), class_="scroll", tabindex=0)
    return section("memory", "Memory", said, drawn)


def time_section(account: Account) -> Markup:
    """Seconds by phase over all starts, as one bar and a table that add up."""
    found = shares(account)
    total = sum(share.seconds for share in found)
    if not total:
        return section("time", "Time", note("Not recorded."))
    picture = bar(
        [(s.seconds / total, i) for i, s in enumerate(found)],
        "; ".join(f"{s.words} {duration(s.seconds)}" for s in found),
        high=True,
    )
    rows: list[Sequence[Child]] = [
        (
            [swatch(i), s.words],
            exact(round(s.seconds, 3), duration(s.seconds)),
            exact(s.seconds / total, f"{100 * s.seconds / total:.1f}%"),
        )
        for i, s in enumerate(found)
    ]
    rows.append(("together", exact(round(total, 3), duration(total)), "100%"))
    count = len(account.starts)
    words = f"From the opening of the run, over {'one start' if count == 1 else f'{count} starts'}."
    if account.going_on:
        words += " As of the last save or compilation."
    content = [note(words), picture, table(("phase", "time", "share"), rows, ("time", "share"))]
    if count > 1:
        content.append(details("each start", starts_table(account)))
    return section("time", "Time by phase", content)


def starts_table(account: Account) -> Markup:
    rows = []
    for i, start in enumerate(account.starts, 1):
        total = sum(number(v) or 0.0 for v in part(start.get("seconds")).values())
        steps = f"{start.get('from_step')} to {start.get('to_step', '?')}"
        row = (str(i), moment(start.get("began")), steps, devices_words(start), duration(total))
        rows.append(row)
    return table(("start", "began (UTC)", "steps", "devices", "time"), rows, numbers=("time",))
