"""`jscale bench kernels`: each operation on the device at hand, against all that computes the same.

Exit status: 0, or 72 where an implementation of ours is not right.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.errors import ConfigError, NumericError, did_you_mean
from jscale.launch.commands.arguments import Parser
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.launch.bench.measure import Clock
    from jscale.launch.bench.subject import Subject
    from jscale.pallas_kernels.device import Device

WHAT = ("kernels",)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep; or tune tiles."""
    options = parser().parse_intermixed_args(list(arguments))
    if options.what not in WHAT:
        raise ConfigError(f"cannot bench {options.what!r}; {did_you_mean(options.what, WHAT)}")
    quiet()
    from jscale.launch.bench import rows
    from jscale.launch.bench.measure import clock_of
    from jscale.mesh.devices import skip_absent
    from jscale.pallas_kernels.device import device

    skip_absent()
    subjects = [rows.subject(name) for name in options.operation or rows.names()]
    where = device()
    clock = clock_of(where.platform, options.quick)
    chosen = [(s, case) for s in subjects for case in cases_of(s, where, options)]
    if options.tune:
        return tune(chosen, where, clock, options)
    return measure(chosen, where, clock, options)


def parser() -> Parser:
    out = Parser(
        prog="jscale bench",
        description="Time each operation on the device at hand, against all that computes the same."
        " Values and gradients are compared first, and what is wrong gets no time.",
    )
    out.add_argument("what", metavar="kernels", help="what to measure")
    out.add_argument(
        "operation", nargs="*", default=[], help="attention, train_step, ... (all that there are)"
    )
    out.add_argument(
        "--shapes",
        metavar="NAME=N,...",
        action="append",
        default=[],
        help="a case of your own: length=8192,heads=16,head=128 (may be given several times)",
    )
    only = out.add_mutually_exclusive_group()
    only.add_argument("--forward", action="store_true", help="the forward pass only")
    only.add_argument("--backward", action="store_true", help="the backward pass only")
    out.add_argument("--quick", action="store_true", help="tiny cases; keeps nothing unless --out")
    out.add_argument(
        "--out", metavar="FILE", help="for results (benchmarks/results/kernels-<device>.json)"
    )
    out.add_argument(
        "--tune", action="store_true", help="find the fastest tiles, and keep them in a table"
    )
    out.add_argument(
        "--table", metavar="FILE", help="the table to write with --tune (in ~/.cache/jscale/tiles)"
    )
    return out


def cases_of(subject: "Subject", where: "Device", options: Any) -> list[Any]:
    """The cases asked for, or those of the platform.

    Raises:
        ConfigError: a shape with a field that the subject's cases do not have, or a bad value.
    """
    from jscale.config.override import override, parse_overrides

    usual = subject.cases(where.platform, options.quick)
    changes = [parse_overrides(text.split(",")) for text in options.shapes]
    return [override(usual[0], change) for change in changes] or list(usual)


def passes_of(options: Any) -> list[str]:
    """The passes that are wanted."""
    from jscale.launch.bench.subject import PASSES

    named = {"forward": options.forward, "backward": options.backward}
    return [name for name in named if named[name]] or list(PASSES)


def measure(chosen: Iterable[Any], where: "Device", clock: "Clock", options: Any) -> int:
    """Measure all cases, each printed and kept as soon as it is done.

    Raises:
        NumericError: in the end, where one of ours was not right.
    """
    from jscale.launch.bench.case import measure as one
    from jscale.launch.bench.ceiling import ceiling_of
    from jscale.launch.bench.results import keep, machine, path_of, read

    path = Path(options.out) if options.out else None if options.quick else path_of(where)
    if path is not None:
        read(path)  # before the work: a file that cannot be added to
    ceilings: dict[str, Any] = {}
    false = []
    for subject, case in chosen:
        if case.dtype not in ceilings:
            ceilings[case.dtype] = ceiling_of(where.platform, case.dtype, clock, options.quick)
            say_ceiling(where, case.dtype, ceilings[case.dtype], clock)
        found = one(subject, case, passes_of(options), ceilings[case.dtype], clock, where)
        found["machine"] = machine(where, ceilings[case.dtype], clock)
        say(found)
        false += [f"{subject.name} by {name!r}" for name in wrong_ones(found)]
        if path is not None:
            keep(path, [found])
    if path is not None:
        print(f"\nkept in {path}")
    if false:
        raise NumericError(f"not right, and so not timed: {', '.join(false)}")
    return 0


def wrong_ones(found: Mapping[str, Any]) -> list[str]:
    """Who, of ours, was not right."""
    return [name for name in found["ours"] if "wrong" in found["silent"].get(name, {})]


def say_ceiling(where: "Device", dtype: str, ceiling: Any, clock: "Clock") -> None:
    print(
        f"{where.kind}: {ceiling.flops / 1e9:,.4g} GFLOP/s in a large product of {dtype},"
        f" {ceiling.bytes / 1e9:,.3g} GB/s in a large copy; times in {clock.kind}",
    )


def say(found: Mapping[str, Any]) -> None:
    """Print the figures of a case as a table of who took how long for which pass."""
    from jscale.launch.commands.tables import show

    print(f"\n{found['operation']}: {found['title']} (chosen: {found['chosen']})")
    rows = []
    for name, one in found["passes"].items():
        ordered = sorted(one["contenders"].items(), key=lambda pair: pair[1]["seconds"])
        rows += [row_of(name, who, figures) for who, figures in ordered]
    header = ("pass", "by", "ms", "GFLOP/s", "of ceiling", "times as long", "temporaries")
    if rows:
        show(header, rows, numbers=header[2:])
    for who, why in found["silent"].items():
        print(f"{who}: {' '.join(f'{kind}: {text}' for kind, text in why.items())}")
    sys.stdout.flush()


def row_of(name: str, who: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    from jscale.checkpoint.sizes import readable

    ratio, size = figures["ratio"], figures["temporaries"]
    return (
        name,
        who,
        f"{1e3 * figures['seconds']:,.3f}",
        f"{figures['rate'] / 1e9:,.4g}",
        f"{figures['fraction']:.1%}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if size is None else readable(size),
    )


def tune(chosen: Iterable[Any], where: "Device", clock: "Clock", options: Any) -> int:
    """Find the fastest tiles of what can be tuned, and write them to a table.

    Raises:
        ConfigError: nothing of what is asked for can be tuned here.
    """
    from jscale.launch.bench.tune import targets
    from jscale.launch.bench.tune import tune as one
    from jscale.pallas_kernels.tiles.table import own, read, write

    path = Path(options.table) if options.table else own(where.kind)
    if path is None:
        raise ConfigError("no home folder for a table of tiles: give --table FILE")
    read(path)  # before the work: a file that cannot be added to
    count = 0
    for subject, case in chosen:
        for target in targets(subject, case, where):
            print(f"{subject.name} by {target.tunable.implementation!r}: {case}", flush=True)
            found = one(subject, case, target, where.kind, clock, print)
            write(path, where.kind, found)
            count += 1
    if not count:
        raise ConfigError("nothing of what is asked for has tiles that can be tuned here")
    print(f"\n{count} rows written to {path}")
    return 0
