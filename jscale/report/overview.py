"""The top of a report: what the run is, where it stands, its figures at a glance."""

import math

from jscale.checkpoint.sizes import readable
from jscale.metrics.figures import duration
from jscale.pictures.markup import Child, Markup, element
from jscale.report.parts import exact, figure, rounded
from jscale.report.read import Account, moment, part, whole
from jscale.report.times import compiled, newest, shares


def state_of(account: Account) -> tuple[str, bool]:
    """Where the run stands, in a sentence, and whether it came to its end."""
    steps = account.steps
    of = f"{account.step:,} of {steps:,} steps" if steps else f"{account.step:,} steps"
    if steps and account.step >= steps and not account.going_on:
        return f"Finished: {of}.", True
    if account.going_on:
        return f"Going on: {of} so far.", True
    if account.going_on is None:
        who = f"process {account.owner.get('process')} on {account.owner.get('host')}"
        return f"{of}; {who} holds the folder, or was killed there.", False
    how = "It was killed" if account.owner else "It was stopped"
    return f"Not finished: {of}. {how}, and goes on when it is started again.", False


def head(account: Account, sections: list[tuple[str, str]]) -> Markup:
    """Name, state and contents."""
    sentence, well = state_of(account)
    moments = [m.times for m in account.metrics.values()]
    first, last = min(float(t.min()) for t in moments), max(float(t.max()) for t in moments)
    when = f"{moment(first)} to {moment(last)} UTC"
    links = [element("a", title, href=f"#{key}") for key, title in sections]
    return element(
        "header",
        element("h1", account.name),
        element("p", sentence, class_="state" if well else "state unfinished"),
        element("p", f"{account.path} · {when}"),
        [element("p", remark, class_="wrong") for remark in account.remarks],
        element("nav", links, aria_label="contents"),
    )


def tiles(account: Account) -> Markup:
    """The figures that one asks for first, each with what it is."""
    made: list[tuple[str, Child, str]] = []

    def add(name: str, metric: str, words: str = "") -> None:
        value = account.last(metric)
        if value is not None:
            made.append((name, exact(value), words))

    add("Loss", "train/loss", perplexity(account.last("train/nll")))
    add("Held-out loss", "heldout/loss", perplexity(account.last("heldout/nll")))
    add("Bits per byte", "heldout/bits_per_byte", "held out")
    if account.tokens_per_step:
        tokens = account.step * account.tokens_per_step
        made.append(("Tokens", exact(tokens, rounded(tokens)), "rows × length, padding included"))
    speed = account.last("train/tokens_per_second")
    if speed is not None:
        made.append(("Tokens a second", exact(speed, rounded(speed)), "over the last steps"))
    mfu = account.last("train/mfu")
    peak = part(newest(account, "peak"))
    if mfu is not None and peak.get("origin") == "known":
        made.append(("MFU", exact(mfu, f"{100 * mfu:.1f}%"), "of the device's peak"))
    memory = next(
        (c["memory"] for c in reversed(compiled(account)) if whole(c.get("memory"))), None
    )
    if isinstance(memory, int):
        made.append(("Memory", exact(memory, readable(memory)), "of the step, on each device"))
    spent = sum(share.seconds for share in shares(account))
    if spent:
        starts = len(account.starts)
        words = "one start" if starts == 1 else f"{starts} starts"
        made.append(("Time", exact(round(spent, 3), duration(spent)), words))
    size = whole(account.environment.get("parameters"))
    if size:
        made.append(("Parameters", exact(size, rounded(size)), ""))
    boxes = [
        element("div", element("dt", n), element("dd", v, element("small", w) if w else None))
        for n, v, w in made
    ]
    return element("dl", boxes, class_="tiles")


def perplexity(nll: float | None) -> str:
    """What nats per token are as a perplexity."""
    return "" if nll is None or not nll < 20 else f"perplexity {figure(math.exp(nll))}"
