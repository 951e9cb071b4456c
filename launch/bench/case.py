"""One case measured: everybody's values first, then, of those who are right, their times."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jscale.launch.bench.ceiling import Ceiling, copy, product, side_of
from jscale.launch.bench.measure import Clock, Times, rounded, take_turns
from jscale.launch.bench.subject import Program, Ready, Subject, Work, wrong
from jscale.pallas_kernels.device import Device

DENSE = "dense product"  # of as many FLOPs, whatever they are for
COPY = "copy"  # of as many bytes, where it is they that take the time


def measure(
    subject: Subject,
    case: Any,
    passes: Sequence[str],
    ceiling: Ceiling,
    clock: Clock,
    where: Device,
) -> dict[str, Any]:
    """All figures of a case, as plain data."""
    work = {n: w for n, w in subject.work(case).items() if n in passes}
    inputs = subject.inputs(case)
    right = subject.values(case, inputs)
    ready: dict[str, Ready] = {}
    silent: dict[str, dict[str, str]] = {}
    ours = subject.contenders(case)
    others = {} if subject.rivals is None else subject.rivals(case)
    for name, contender in {**ours, **others}.items():
        if isinstance(contender, str):
            silent[name] = {"refused": contender}
            continue
        try:
            found = contender(inputs, list(work))
            error = wrong(found.values(), right, subject.limits[case.dtype])
        except Exception as failure:  # whatever a foreign library raises is its answer
            silent[name] = {"refused": first_line(failure)}
            continue
        if error is not None:
            silent[name] = {"wrong": error}
        else:
            ready[name] = found
    chosen = subject.chosen(case)
    return {
        "operation": subject.name,
        "title": str(case),
        "case": asdict(case),
        "chosen": chosen,
        "ours": list(ours),
        "silent": silent,
        "passes": {
            name: one_pass(name, w, ready, chosen, (ceiling, clock, where, case.dtype))
            for name, w in work.items()
        },
    }


def first_line(failure: Exception) -> str:
    """What an exception says, in short."""
    text = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {text[0][:200] if text else ''}".rstrip(": ")


def one_pass(
    name: str,
    work: Work,
    ready: Mapping[str, Ready],
    chosen: str,
    around: tuple[Ceiling, Clock, Device, str],
) -> dict[str, Any]:
    """The figures of one pass of all that have it, and of as large a product or copy."""
    ceiling, clock, where, dtype = around
    programs = {who: r.programs[name] for who, r in ready.items() if name in r.programs}
    scale = {who: 1.0 for who in programs}
    if programs and work.flops:
        side = side_of(work.flops, where.platform)
        programs[DENSE] = product(side, dtype)
        scale[DENSE] = work.flops / (2 * side**3)
    if programs and work.bytes / ceiling.bytes > work.flops / ceiling.flops:
        programs[COPY], scale[COPY] = copy(max(1, round(work.bytes / 8))), 1.0
    times = take_turns(programs, clock)
    scaled = {who: Times(tuple(scale[who] * s for s in t.seconds)) for who, t in times.items()}
    found = {
        who: figures(t, scaled.get(chosen), work, ceiling, programs[who])
        for who, t in scaled.items()
    }
    return {"flops": work.flops, "bytes": work.bytes, "contenders": rounded(found)}


def figures(
    times: Times, chosen: Times | None, work: Work, ceiling: Ceiling, program: Program
) -> dict[str, Any]:
    """Of one competitor: `ratio` is of its time to that of whom jscale chooses."""
    return {
        "seconds": times.middle,
        "rate": work.flops / times.middle,
        "fraction": ceiling.least(work) / times.middle,
        "ratio": None if chosen is None else times.ratio(chosen),
        "temporaries": program.temporaries,
        "turns": len(times.seconds),
    }
