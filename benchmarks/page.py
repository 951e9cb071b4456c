"""docs/performance.md from the figures of benchmarks/step.py, and of moe.py where there are any."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from moe_page import section

HEAD = """# Performance

This page is written by `python benchmarks/step.py --write-docs` from
[step.json](../benchmarks/results/step.json), and a test checks that it is. All of it was measured
on a **CPU**; nothing here was measured on a GPU or a TPU, and nothing here says how fast jscale is
there.

"""

METHOD = """
The competitors of a job take steps in turn in one process. Seconds are of the processor, all
threads together, medians over the steps counted in the table (means for the loop); a ratio is the
median of the ratios step by step, and beside it stands the ratio of the medians. The machine had
other work at the same time. Memory is the peak of a process
that makes the weights and takes two steps. Losses and gradients of the first step are compared in
the same run (columns "off": relative differences); a run whose competitors differ fails.

"""

HAND = """## Against a step written by hand

[by_hand.py](../benchmarks/by_hand.py) is the same model as a program for this job alone: plain JAX,
weights stored so that projections that read the same array are one product, attention in tiles, the
gradient of the loss made while the logits are at hand, norms and SwiGLU made again for the
backward pass, AdamW in one pass. It has no layouts, no
guard against bad steps, no metrics. The ratio is what jscale costs beside it; the aims are 1.02 for
the step of the dense job and 1.05 for compiling. Where the two ratios differ, so much is noise.

"""

END = """## Run it

<!-- not run: takes many minutes -->
```bash
python benchmarks/step.py
```

`--quick` runs tiny sizes in seconds and keeps nothing; `--jobs dense` picks jobs. PyTorch is
measured where `torch` and `transformers` are installed.
"""

NAMES = {
    "dense": "dense, one device",
    "fsdp": "FSDP over 8 simulated devices",
    "deep": "128 tiny layers",
}


def write(results: dict[str, Any]) -> str:
    """The page."""
    machine, jobs = results["machine"], results["jobs"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"Machine: {machine['cores']} cores, {machine['processor']}. Versions: {versions}.\n"
    return HEAD + where + METHOD + HAND + by_hand(jobs) + parts(jobs) + section() + END


def by_hand(jobs: dict[str, Any]) -> str:
    rows = [
        "| job | steps | s per step: ours | by hand | ratio | of medians | compile s: ours"
        " | by hand | ratio | peak GiB: ours | by hand | loss off | gradients off |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for job in (j for j in NAMES if j in jobs):
        r = jobs[job]
        (a, b), (c, d) = r["seconds"], r["compile_seconds"]
        memory = [f"{r['gib'][who]:.2f}" if "gib" in r else "–" for who in ("ours", "hand")]
        rows.append(
            f"| {NAMES[job]} | {r['steps']} | {a:.3g} | {b:.3g} | {r['ratio']:.3f}"
            f" | {r['ratio_of_medians']:.3f} | {c:.3g} | {d:.3g}"
            f" | {r['compile_ratio']:.2f} | {memory[0]} | {memory[1]} | {r['loss_off']:.0e}"
            f" | {r['gradient_off']:.0e} |"
        )
    found = "\n".join(rows) + "\n\n"
    if "dense" in jobs:
        s = jobs["dense"]["sizes"]
        found += (
            f"Dense and FSDP: vocabulary {s['vocab']:,}, model size {s['dim']}, {s['layers']}"
            f" layers, {s['heads']} heads, hidden {s['hidden']:,}, length {s['length']}, batch"
            f" {s['batch']}, AdamW, float32, activations kept.\n\n"
        )
    return found + misses(jobs)


def misses(jobs: dict[str, Any]) -> str:
    """By how much the aims are missed, and why."""
    found = [
        f"{NAMES[job]}: {name} {jobs[job][key]:.3f} (aim: {aim})"
        for job in NAMES
        for name, key, aim in (("step", "ratio", 1.02), ("compiling", "compile_ratio", 1.05))
        if job in jobs and jobs[job][key] > aim
    ]
    stale = [job for job in jobs if jobs[job].get("earlier")]
    note = (
        "Not measured again since norms and SwiGLU have derivatives of their own,"
        f" on both sides: {', '.join(stale)}.\n\n"
    )
    note = note if stale else ""
    if not found:
        return note
    return note + (
        f"Aims missed: {'; '.join(found)}. What is left in a step of tiny layers is the update:"
        " weights of heads are stored [model, heads, head], and XLA's CPU loops over heads of 8"
        " numbers slowly. Our program also has more to compile: 12 arrays to update where the step"
        " by hand has 9, the guard, and the check that the loss's prepared gradient is the one"
        " asked for.\n\n"
    )


def parts(jobs: dict[str, Any]) -> str:
    """The other jobs, a paragraph each."""
    found = "## The host, the loop, and PyTorch\n\n"
    if "deep" in jobs:
        found += (
            f"- **Host.** A call of the trainer's compiled step takes the host"
            f" {jobs['deep']['host_ms']:.2f} ms with 128 layers, until it returns (aim: 2.5 ms).\n"
        )
    if "loop" in jobs:
        r = jobs["loop"]
        found += (
            f"- **Loop.** `Trainer`'s loop with its data, metrics and files costs"
            f" {r['seconds'][0]:.3g} processor seconds per step, the bare step on one batch"
            f" {r['seconds'][1]:.3g}: {r['ratio']:.3f} times as much, for a step as small as that"
            " of `quickstart`.\n"
        )
    if "torch" in jobs:
        r = jobs["torch"]
        found += (
            f"- **PyTorch.** `transformers`' Llama with torch's fused AdamW, as it comes, takes"
            f" {r['seconds'][0]:.3g} s per step of the dense job, ours {r['seconds'][1]:.3g} s in"
            f" the same process: {r['ratio']:.2f} times as much, over {r['steps']} steps; its"
            f" peak memory is {r['gib']['torch']:.2f} GiB. The first losses differ by"
            f" {r['loss_off']:.0e}.\n"
        )
    return found + "\n"
