"""The part of docs/performance.md about mixtures of experts, from the figures of moe.py."""

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "moe-cpu.json"
LOADS = {"natural": "as the router chooses", "forced": "even use forced"}

HEAD = """## Mixtures of experts

A small Mixtral ([moe.py](../benchmarks/moe.py), figures in
[moe-cpu.json](../benchmarks/results/moe-cpu.json)) against the same by hand in plain JAX
([moe_by_hand.py](../benchmarks/moe_by_hand.py)): sorted, with experts multiplied in blocks, by
`jax.lax.ragged_dot`, or by one-hot products as in GShard; and `transformers`' on PyTorch. All take
steps in turn in one process while others used the machine: seconds of the processor, medians, and
ratios to ours step by step. "Of dense" is the time of one dense product of as many FLOPs beside
that of the step. Temporaries are what the compiled program says. PyTorch has one thread here: more
of them spin while they wait, in seconds that would count. Nothing of it was measured on a GPU.

"""


def section() -> str:
    """The section; nothing where nothing was measured."""
    if not RESULT.exists():
        return ""
    jobs = json.loads(RESULT.read_text())["jobs"]
    found = HEAD + "".join(table(jobs[load], name) for load, name in LOADS.items() if load in jobs)
    worst = max(
        1 / figures["ratio"]
        for load in LOADS
        if load in jobs
        for who, figures in jobs[load]["contenders"].items()
        if who.startswith("by hand")
    )
    if worst > 1.1:
        found += f"Aim missed: our step takes {worst:.2f} times as long as the best by hand.\n\n"
    return found


def table(job: dict[str, Any], load: str) -> str:
    """One load, a line for each who competed."""
    s = job["sizes"]
    rows = [
        f"{load.capitalize()}; {s['batch']} × {s['length']} tokens, {s['layers']} layers of"
        f" {s['dim']}, {s['choices']} of {s['experts']} experts of {s['hidden']}, vocabulary"
        f" {s['vocab']:,}, float32, {job['steps']} steps:",
        "",
        "| step | s | as ours | tokens/s | of dense | temporaries MiB | peak GiB | loss off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(job["contenders"].items(), key=lambda pair: pair[1]["seconds"])
    for who, r in ordered:
        size = f"{r['temporaries'] / 2**20:,.0f}" if r["temporaries"] else "–"
        peak = f"{r['gib']:.2f}" if "gib" in r else "–"
        rows.append(
            f"| {who} | {r['seconds']:.3g} | {r['ratio']:.2f} | {r['tokens_per_second']:,.0f}"
            f" | {r['of_dense']:.1%} | {size} | {peak} | {r['loss_off']:.0e} |"
        )
    rows += [f"| {who} | {why} |  |  |  |  |  |  |" for who, why in job["left_out"].items()]
    return "\n".join(rows) + "\n\n"
