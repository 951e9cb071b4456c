"""docs/kernels.md, from the operations' own tables, the record of proofs, and kept results.

python benchmarks/kernels_page.py    # writes docs/kernels.md
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import proofs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "kernels.md"
RESULTS = ROOT / "benchmarks" / "results"

# Kernels that are another's: what is ours is a call, and nobody could interpret them.
FOREIGN = {("attention", "cudnn"): "NVIDIA's, through JAX's public function"}

HEAD = """# Kernels

This page is written by `python benchmarks/kernels_page.py` from the operations' own tables in
`pallas_kernels/`, from the record of the tests that passed
([proofs.json](../benchmarks/results/proofs.json)) and from measured results
([benchmarks/results](../benchmarks/results)); a test compares. Nothing is written here by hand but
the sentences.

An operation is a folder of `pallas_kernels/`: `reference` is the definition of right, the others
compute the same. Without a name the choice is by device, shape and dtype, and is told once in the
log (`jscale.pallas_kernels`, level INFO). What can be chosen:

"""

WHAT = """
**Run**: values and all gradients (where the operation has some) equal those of a loop or of the
reference, in tests on CPU; a reference without such tests is the definition of right itself.
**Interpreted**: the same, the kernel run step by step without its chip, outputs that nobody wrote
being NaN; tensor memory (Blackwell) from JAX 0.12 on, where accesses that race fail. **Compiled
for**: forward and backward, by the chip's own compiler, for chips that were not there. **Measured
on**: compared with the reference and timed there by `jscale bench`. Limits of tests: relative
Frobenius error 1e-5 in float32, 1e-2 in bfloat16. An implementation "by name only" is never chosen
until it has run on a real chip. What devices exchange (`context_attention`, `dispatch`) is no
choice of implementations and is not in this table.

"""

RUN = """## Measure it on your device

```bash
jscale bench kernels retention --quick
```

measures tiny cases of one operation, and keeps nothing. All operations, real shapes, on the device
at hand (an H200, a TPU, a laptop), in one command:

<!-- not run: takes minutes -->
```bash
jscale bench kernels
```

Everybody's values and gradients are compared with the reference first, and what is wrong gets no
time (and, if it is ours, exit status 72). Competitors take turns; a ratio is the median of the
ratios turn by turn. On a CPU, seconds are of the processor, all threads together. "Of ceiling" is
the time that the least possible work (FLOPs of products over the pairs that the mask shows, bytes
read and written once) would take at the rate of a large product of matrices and of a large copy,
both measured in the same run. Results go to `benchmarks/results/kernels-<device>.json`; then
`python benchmarks/kernels_page.py` writes them into this page. `--shapes length=8192,heads=16` is a
case of your own, `--forward` and `--backward` restrict the passes.

For an H200 with everything to compare with (CUDA 13, PyTorch, tokamax):

<!-- not run: needs a GPU -->
```bash
pip install -e '.[cuda13]' torch tokamax
jscale bench kernels attention
```

## Tune it

Tiles come from a table of the chip, else from rules in `pallas_kernels/attention/tuned.py`.

<!-- not run: takes minutes -->
```bash
jscale bench kernels attention --tune
```

tries, for each case, the tiles that the rules say fit, checks values, and writes the fastest to
`~/.cache/jscale/tiles/<device>.json`, which goes before the shipped table. `--table
pallas_kernels/tiles/shipped/<device>.json` writes that one. A row stands for all lengths and head
sizes that round up to the same powers of two.

"""


def operations() -> dict[str, Any]:
    """Every operation of `pallas_kernels/` with its table of implementations."""
    import jscale.pallas_kernels as room

    found = {}
    for module in pkgutil.iter_modules(room.__path__):
        try:
            choice = importlib.import_module(f"{room.__name__}.{module.name}.choice")
        except ModuleNotFoundError:
            continue
        operation = getattr(choice, "OPERATION", None)
        table = choice.IMPLEMENTATIONS if operation is None else operation.implementations
        found[module.name] = table
    return found


def write(record: Mapping[str, Any], results: Mapping[str, Any], tables: Mapping[str, Any]) -> str:
    """The page from the record of proofs, results by device, and tables of tiles by chip."""
    rows = ["| operation | by | where | run | interpreted | compiled for | measured on |"]
    rows += ["|---|---|---|---|---|---|---|"]
    for operation, implementations in operations().items():
        for name, one in implementations.items():
            rows.append(row(operation, name, one, record, results))
    page = HEAD + "\n".join(rows) + "\n" + WHAT + needs(record) + never(record, results) + RUN
    return page + tiles(tables) + measured(results)


def row(
    operation: str, name: str, one: Any, record: Mapping[str, Any], results: Mapping[str, Any]
) -> str:
    """The line of an implementation."""
    tests = lambda kind: proofs.proven(record, operation, name, kind)
    number = lambda kind: sum(len(t) for t in tests(kind).values())
    counted = lambda kind: f"{number(kind)} test{'s' * (number(kind) > 1)}" if number(kind) else "–"
    chips = ", ".join(sorted(str(chip) for chip in tests("compiled"))) or "–"
    devices = sorted(d for d in results if where_measured(results[d], operation, name))
    cells = (
        f"`{operation}`",
        f"`{name}`",
        places(operation, name, one),
        counted("run"),
        counted("interpreted"),
        chips,
        ", ".join(devices) or "–",
    )
    return f"| {' | '.join(cells)} |"


def places(operation: str, name: str, one: Any) -> str:
    """Where it runs, and whether it is taken by name only."""
    platforms = ", ".join(getattr(one, "platforms", ("cpu", "gpu", "tpu")))
    named = "" if getattr(one, "proven", True) else "; by name only"
    other = FOREIGN.get((operation, name))
    return platforms + named + (f"; {other}" if other else "")


def where_measured(cases: Sequence[Mapping[str, Any]], operation: str, name: str) -> bool:
    """Whether one of the cases has a time of it."""
    return any(
        name in one["contenders"]
        for case in cases
        if case["operation"] == operation
        for one in case["passes"].values()
    )


def needs(record: Mapping[str, Any]) -> str:
    """What compilers said that kernels need, where a test recorded it; fusions left out."""
    rows = []
    for test, outcome in record["tests"].items():
        said: dict[str, list[str]] = {}
        for name, value in outcome.get("properties", {}).get("resources", {}).items():
            kernel, _, what = name.partition(".")
            if not kernel.endswith("fusion"):
                said.setdefault(kernel, []).append(f"{what or 'vmem'} {value:,}")
        for proof, chip in proofs.proves(test):
            head = f"| {proof.operation} | `{proof.implementation}` | {chip or '–'}"
            rows += [f"{head} | {kernel} | {', '.join(parts)} |" for kernel, parts in said.items()]
    if not rows:
        return ""
    head = "| operation | by | chip | kernel | needs |\n|---|---|---|---|---|\n"
    return (
        "What compilers say that kernels need: registers of a thread, bytes of its stack, of\n"
        "shared memory, of a TPU's vector memory:\n\n" + head + "\n".join(rows) + "\n\n"
    )


def unproven(record: Mapping[str, Any]) -> list[str]:
    """Implementations of which no recorded test proves anything, and that are not others'."""
    found = []
    for operation, implementations in operations().items():
        for name in implementations:
            kinds = [proofs.proven(record, operation, name, k) for k in ("run", "interpreted")]
            known = name == "reference" or (operation, name) in FOREIGN  # the definition of right
            by_name = not getattr(implementations[name], "proven", True)
            if not any(kinds) and not by_name and not known:
                found.append(f"{operation} by {name}")
    return found


def never(record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """What was never measured, by platform."""
    seen = {case["machine"]["platform"] for cases in results.values() for case in cases}
    absent = [name for name in ("gpu", "tpu") if name not in seen]
    kernels = []
    for operation, implementations in operations().items():
        timed = lambda n, o=operation: any(where_measured(c, o, n) for c in results.values())
        names = [f"`{name}`" for name in implementations if not timed(name)]
        kernels += [f"{operation} ({', '.join(names)})"] if names else []
    found = "## Never measured\n\n"
    if absent:
        names = " or ".join({"gpu": "a GPU", "tpu": "a TPU"}[name] for name in absent)
        found += f"Nothing was run on {names}: none was at hand. "
    if kernels:
        found += f"No time was ever taken of: {'; '.join(kernels)}. Nothing here says how fast"
        found += " they are, on any device. What counts of FLOPs and bytes let expect of attention"
        found += " on an H200 is in [a note](../benchmarks/notes/attention.md)."
    return found + "\n\n" + foreign()


def foreign() -> str:
    """What is another's, and so has no proof here."""
    listed = [f"`{n}` of {o} is {why}" for (o, n), why in FOREIGN.items()]
    return f"No proof is asked of what is another's: {'; '.join(listed)}.\n\n"


def tiles(tables: Mapping[str, Any]) -> str:
    """The rows of shipped tables."""
    if not tables:
        return "No table is shipped yet: all tiles are the rules'.\n\n"
    rows = ["| chip | operation | by | for | tiles | time beside the rule's | measured |"]
    rows += ["|---|---|---|---|---|---|---|"]
    listed = lambda x: ", ".join(f"{n} {v}" for n, v in x.items())
    for chip, table in sorted(tables.items()):
        for one in table["rows"]:
            m = one["measured"]
            rows.append(
                f"| {chip} | {one['operation']} | `{one['implementation']}` | {listed(one['of'])}"
                f" | {listed(one['tiles'])} | {m['ratio']:.2f}"
                f" | {m['processor']}, JAX {m['jax']}, {m['date']} |"
            )
    return "Shipped:\n\n" + "\n".join(rows) + "\n\n"


def measured(results: Mapping[str, Any]) -> str:
    """A section for each device, a table for each case."""
    found = ""
    for device, cases in sorted(results.items()):
        found += f"## Measured on {device}\n\n"
        for case in cases:
            found += table(case)
    return found.rstrip("\n") + "\n"


def table(case: Mapping[str, Any]) -> str:
    """The figures of one case."""
    passes = case["passes"]
    names = sorted({name for one in passes.values() for name in one["contenders"]})
    last = list(passes)[-1]
    time_of = lambda name: passes[last]["contenders"].get(name, {}).get("seconds", 1e9)
    names.sort(key=time_of)
    head = ["by", *(f"{p}: ms | times as long | GFLOP/s | of ceiling" for p in passes)]
    rows = [f"| {' | '.join(head)} | MiB of temporaries |"]
    rows += [f"|{'---|' * (2 + 4 * len(passes))}"]
    for name in names:
        cells = [cell(one["contenders"].get(name)) for one in passes.values()]
        size = passes[last]["contenders"].get(name, {}).get("temporaries")
        mib = "–" if size is None else f"{size / 2**20:,.1f}"
        rows.append(f"| {name} | {' | '.join(cells)} | {mib} |")
    machine = case["machine"]
    versions = machine["versions"]
    with_ = ", ".join(f"{n} {versions[n]}" for n in ("jax", "torch", "tokamax") if n in versions)
    ceiling = machine["ceiling"]
    about = (
        f"**{case['operation']}**: {case['title']}. Chosen: `{case['chosen']}`."
        f" {machine['cores']} cores, {machine['processor']}; {with_}; {machine['date']};"
        f" {machine['clock']}; ceilings {ceiling['flops'] / 1e9:,.3g} GFLOP/s and"
        f" {ceiling['bytes'] / 1e9:,.3g} GB/s.\n\n"
    )
    wrong = [f"{n}: {why['wrong']}" for n, why in case["silent"].items() if "wrong" in why]
    return about + "\n".join(rows) + "\n\n" + "".join(f"Not right: {w}.\n\n" for w in wrong)


def cell(figures: Mapping[str, Any] | None) -> str:
    """The figures of one pass of one competitor."""
    if figures is None:
        return "– | – | – | –"
    ratio = figures["ratio"]
    times = "–" if ratio is None else f"{ratio:.2f}"
    rate = f"{figures['rate'] / 1e9:,.4g}"
    return f"{1e3 * figures['seconds']:,.4g} | {times} | {rate} | {figures['fraction']:.0%}"


def page() -> str:
    """The page from what is kept."""
    load = lambda path: json.loads(path.read_text(encoding="utf-8"))
    record = load(proofs.RESULT) if proofs.RESULT.exists() else {"tests": {}}
    files = sorted(RESULTS.glob("kernels-*.json"))
    results = {path.stem.removeprefix("kernels-"): load(path)["cases"] for path in files}
    shipped = sorted((ROOT / "pallas_kernels" / "tiles" / "shipped").glob("*.json"))
    return write(record, results, {load(path)["chip"]: load(path) for path in shipped})


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
