"""`jscale moe report|doctor|bench`: mixtures of experts looked at, in training and before it."""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.errors import CheckpointError, ConfigError, did_you_mean
from jscale.launch.commands.arguments import Parser
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.experts.journal import Entry
    from jscale.experts.verdict import Verdict
    from jscale.report import Account

BENCH = "jscale.launch.commands.moe_bench"
HELP = """usage: jscale moe ACTION [...]

Look at mixtures of experts.

{actions}

  jscale moe report runs/mine               how evenly each layer's experts are used, and why
  jscale moe doctor RECIPE --data my.jsonl  the same before training, on data of yours
  jscale moe ACTION --help                  what an action takes
"""


def main(arguments: Sequence[str]) -> int:
    """Do what the first word asks for."""
    words, known = list(arguments), actions()
    if not words or words[0] in ("--help", "-h"):
        rows = [f"  {name:<8} {text}" for name, (_, text) in known.items()]
        print(HELP.format(actions="\n".join(rows)), end="")
        return 0
    if words[0] not in known:
        raise ConfigError(f"there is no jscale moe {words[0]}; {did_you_mean(words[0], known)}")
    quiet()
    module, _ = known[words[0]]
    action = report if module is None else importlib.import_module(module).main
    return action(words[1:])


def actions() -> dict[str, tuple[str | None, str]]:
    """The module of each action, None for this one, and a line of help."""
    found: dict[str, tuple[str | None, str]] = {
        "report": (None, "a verdict on each layer of a run"),
        "doctor": ("jscale.launch.commands.moe_doctor", "how a recipe's model routes data"),
    }
    if importlib.util.find_spec(BENCH) is not None:
        found["bench"] = (BENCH, "time the ways to experts on the devices at hand")
    return found


def report(arguments: Sequence[str]) -> int:
    """Print a verdict on each layer of a run."""
    options = parser().parse_args(list(arguments))
    from jscale.report import read_run

    account = read_run(Path(options.run))
    entries = spaced(seen_of(account), options.every)
    found = verdicts_of(account, entries)
    if options.json:
        print(json.dumps(as_data(account, entries, found), indent=2))
    else:
        show_run(account, entries, found)
    return 0


def parser() -> argparse.ArgumentParser:
    out = Parser(
        prog="jscale moe report",
        description="How evenly the experts of each layer are used, since when, why, and what may"
        " help. A run that is going on may be looked at.",
    )
    out.add_argument("run", metavar="RUN", help="the folder of a run")
    out.add_argument(
        "--every", type=int, metavar="N", help="look at steps that are N apart (at all kept ones)"
    )
    out.add_argument("--json", action="store_true", help="print JSON")
    return out


def seen_of(account: "Account") -> "tuple[Entry, ...]":
    """The steps of a run's experts that were kept.

    Raises:
        ConfigError: its model has no experts.
        CheckpointError: none is kept, or none can be read.
    """
    from jscale.experts.setting import settings_of
    from jscale.report.parts import text_of

    if account.experts:
        return account.experts
    if not settings_of(account.recipe):
        model = text_of(account.recipe.get("model"))
        raise ConfigError(f"the run {account.path} has no experts: its model is a {model}")
    odd = [remark for remark in account.remarks if remark.startswith("experts.jsonl")]
    why = odd[0] if odd else "no step of its experts is kept there yet"
    raise CheckpointError(f"{account.path / 'experts.jsonl'}: {why}")


def spaced(entries: "Sequence[Entry]", every: int | None) -> "tuple[Entry, ...]":
    """Of them those that are at least so many steps apart, and the newest.

    Raises:
        ConfigError: less than one step.
    """
    if every is not None and every < 1:
        raise ConfigError(f"--every takes a number of steps from 1, not {every}")
    out = [entries[-1]]
    for entry in reversed(entries[:-1]):
        if out[-1].step - entry.step >= (every or 1):
            out.append(entry)
    return tuple(reversed(out))


def verdicts_of(account: "Account", entries: "Sequence[Entry]") -> "tuple[Verdict, ...]":
    """The verdicts on the layers of a run after these steps."""
    from jscale.experts.setting import settings_of
    from jscale.experts.sharing import sharing_of
    from jscale.experts.verdict import verdicts

    return verdicts(entries, settings_of(account.recipe), sharing_of(account.layout))


def show_run(account: "Account", entries: "Sequence[Entry]", found: "Sequence[Verdict]") -> None:
    """Print the verdicts for a person."""
    from jscale.experts.onset import window
    from jscale.experts.table import summary_words

    now = entries[-window(len(entries)) :]
    steps = f"step {now[0].step:,}" + (f" to {now[-1].step:,}" if len(now) > 1 else "")
    of = f" of {account.steps:,}" if account.steps else ""
    going = ", going on" if account.going_on else ""
    print(f"{account.name}: step {account.step:,}{of}{going}; {summary_words(found)}")
    print(f"figures of {steps}, {len(now)} of {len(entries)} kept steps\n")
    show(found, lost_words(account, entries))


def show(found: "Sequence[Verdict]", sentences: Sequence[str]) -> None:
    """Print the table, what devices wait for, further sentences, and what may help."""
    from jscale.experts.table import HEADER, NUMBERS, advice_words, rows, sharing_words
    from jscale.launch.commands.tables import show as table

    lines = rows(found)
    if lines:
        kept = [i for i, name in enumerate(HEADER) if any(row[i] for row in lines)]
        table([HEADER[i] for i in kept], [[row[i] for i in kept] for row in lines], NUMBERS)
        print()
    for sentence in (sharing_words(found), *sentences):
        if sentence:
            print(sentence)
    for cause, where, fix in advice_words(found):
        print(f"\ncause: {cause} ({where})")
        print(f"fix:   {fix}") if fix else None


def lost_words(account: "Account", entries: "Sequence[Entry]") -> list[str]:
    """What was dropped in kept steps, and how many steps were done again."""
    layers = [layer for entry in entries for layer in entry.layers]
    chosen = sum(float(layer.chosen.sum()) for layer in layers)
    dropped = sum(layer.dropped for layer in layers)
    share = f" ({dropped / chosen:.2%})" if dropped and chosen else ""
    replays = int(account.last("train/replays") or 0)
    again = f"; {replays:,} steps were done again without bounds" if replays else "; no replays"
    return [f"dropped: {dropped:,.0f} of {chosen:,.0f} choices in kept steps{share}{again}"]


def as_data(
    account: "Account", entries: "Sequence[Entry]", found: "Sequence[Verdict]"
) -> dict[str, Any]:
    """The verdicts for another program."""
    return {
        "run": str(account.path),
        "step": account.step,
        "steps": account.steps,
        "kept": [entry.step for entry in entries],
        "replays": account.last("train/replays"),
        **data_of(found),
    }


def data_of(found: "Sequence[Verdict]") -> dict[str, Any]:
    """Layers with all their figures, and advice, as plain data."""
    from jscale.experts.figures import gate_mass
    from jscale.experts.table import advice_words
    from jscale.metrics.jsonl import json_value

    each = [
        {
            "name": verdict.name,
            "verdict": verdict.words,
            **verdict.figures._asdict(),
            "maxvio": verdict.figures.maxvio,
            "gate_mass": gate_mass(verdict.layer).tolist(),
            "devices": verdict.devices,
            "imbalance": verdict.imbalance,
        }
        for verdict in found
    ]
    advice = [{"cause": c, "layers": where, "fix": fix} for c, where, fix in advice_words(found)]
    return json_value({"layers": each, "advice": advice})
