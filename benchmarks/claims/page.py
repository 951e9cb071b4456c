"""docs/claims.md, from the figures under benchmarks/results/claims.

python benchmarks/claims/page.py    # writes docs/claims.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from keep import RESULTS
from subln import middle

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
KEPT = "../benchmarks/results/claims"

HEAD = """# The papers' claims, measured small

This page is written by `python benchmarks/claims/page.py` from
[benchmarks/results/claims](../benchmarks/results/claims); a test compares, and others check that
the figures show what is claimed. All were measured on a CPU of {cores} cores that had other work
at the same time, with JAX {jax}. The models are tiny: what is shown is an ordering or a growth, and
no quality that a paper reports. Each script runs in minutes:

<!-- not run: takes many minutes -->
```bash
python benchmarks/claims/deepnorm.py
python benchmarks/claims/subln.py
python benchmarks/claims/xpos.py
python benchmarks/claims/retnet.py
python benchmarks/claims/longnet.py
python benchmarks/claims/experts.py
python benchmarks/claims/page.py
```
"""


TRIALS = """
The setting was chosen after trials on other seeds, of which no figures are kept. Most of them did
not show the claim, and some showed the reverse:

- By plain SGD of the layers alone (100 layers, 60 updates of this task, all else still) pre-LN does
  better at the larger rates, and takes some that are up to four times as large: with GELU, squared
  ReLU and SwiGLU, with the paper's first weights and TorchScale's, and where matrices alone learn.
  The smaller first move does not tell how far the later ones stay stable.
- By SGD of all weights (48 layers, text) both train up to a rate of 1.1 and fail at 1.4.
- By Adam on bytes of text there is no clear difference: with 24 layers at rates to 0.064, with 96
  layers, where the order changes between seeds, and with 100 layers and a rate of theirs to 0.1.
- Saying the token before, in place of the token, is hardly learned by either in 60 updates.
- By Adam on this task with 200 layers, one seed, the order is that above, by one step of the rates.

Half precision, wider networks, warm-up and longer training were not tried.
"""


def read(name: str) -> dict[str, Any]:
    """The figures of one claim."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def picture(words: str, name: str) -> str:
    """A picture of the results."""
    return f"\n![{words}]({KEPT}/{name}.svg)\n"


def section(name: str, title: str, text: str) -> str:
    """A heading, and what stands below it; the figures are linked."""
    return f"\n## {title}\n\n{text.strip()}\n\nAll figures: [{name}.json]({KEPT}/{name}.json).\n"


def deepnorm() -> str:
    """DeepNorm's section."""
    found = read("deepnorm")
    names, rows = list(found["flow"]), []
    for depths in zip(*found["flow"].values(), strict=True):
        cells = [f"{one['ratio']:.2g} ({span(one['ratios'])})" for one in depths]
        compiled = ", ".join(f"{one['compile_seconds']:.0f} s" for one in depths)
        rows.append([f"{depths[0]['layers']:,}", *cells, compiled])
    text = """
`norm(α x + f(x))` with smaller first weights lets a gradient come to the first of 1,000 layers as
large as it is at the last; with norms after sums alone it vanishes on the way. The norm of the
gradient of the feed-forward's last matrix, in the first layer over the last, before any update: the
median of {seeds} seeds, and from where to where. Layers are a scan: compiling the gradient takes
about as many processor seconds at any depth.

""".format(seeds=len(depths[0]["ratios"]))
    text += table(["layers", *names, "compiling"], rows)
    text += picture("Gradients by layer", "deepnorm-gradients")
    text += "\n" + trained(found) + picture("Loss at 1,000 layers", "deepnorm-training")
    return section("deepnorm", "DeepNorm: 1,000 layers", text)


def span(values: Sequence[float]) -> str:
    """The least and the largest of some values."""
    return f"{min(values):.2g} … {max(values):.2g}"


def trained(found: dict[str, Any]) -> str:
    """What training at the greatest depth came to."""
    s, ends = found["settings"], found["ends"]
    rows = [
        [name, *("not a number" if end is None else f"{end:.2f}" for end in rates.values())]
        for name, rates in ends.items()
    ]
    rates = [f"rate {rate}" for rate in next(iter(ends.values()))]
    steps = len(next(iter(next(iter(found["training"].values())).values())))
    return (
        f"Training at 1,000 layers, {steps} updates by Adam: each of {s['vocabulary']} tokens is to"
        f" be said again, and guessing costs {found['guess']:.2f} nats. The mean loss of the last"
        " ten updates:\n\n" + table(["", *rates], rows)
    )


def subln() -> str:
    """Sub-LN's section."""
    found = read("subln")
    s, rates = found["settings"], found["rates"]
    layers, whole = found["layers"], found["all"]
    several, fewer = (len(of["ends"]["pre-LN"]) for of in (layers, whole))
    text = f"""
`x + f(norm x)` as pre-LN has it, with a norm before the last matrix of f too, and larger first
weights. One update of the layers' weights, SGD's and Adam's, at a small rate (0.0001 and 0.00001):
how far hidden states before the head move, over the rate, the median of {several} seeds and from
where to where. SGD's is what the paper's theory bounds for Sub-LN; in these narrow networks it
grows with the depth in both, and is smaller with Sub-LN:

"""
    text += table(["update", "layers", *found["moves"]], moved(found))
    text += f"""
Training of {s["layers"]} layers on the task above, {s["updates"]} updates by Adam without warm-up.
The rate that is varied is that of the layers; embeddings, the last norm and the head learn at
{s["rest"]:g}. The mean loss of the last tenth of the updates, the median of {several} seeds. A rate
is taken where that is no more than {layers["bound"]:.2f}, halfway between guessing and the best of
this table:

"""
    text += taken(rates, layers) + picture("Loss by learning rate", "subln")
    text += f"""
With one rate of all weights, on {fewer} of these seeds, it does not show: Sub-LN's losses are lower
up to the largest rate that is taken (no more than {whole["bound"]:.2f} here), which is the same for
both.

"""
    text += taken(rates, whole) + TRIALS
    return section("subln", "Sub-LN: larger learning rates of layers", text)


def moved(found: dict[str, Any]) -> list[list[str]]:
    """Rows of how far one update moves hidden states."""
    rows = []
    for optimiser in ("SGD", "Adam"):
        for i, layers in enumerate(found["depths"]):
            each = [sorted(of[optimiser][i]) for of in found["moves"].values()]
            cells = [f"{one[len(one) // 2]:,.0f} ({one[0]:,.0f} … {one[-1]:,.0f})" for one in each]
            rows.append([optimiser, f"{layers:,}", *cells])
    return rows


def taken(rates: Sequence[float], found: dict[str, Any]) -> str:
    """The median of last losses at each rate, and the largest rate that each scheme takes."""
    rows = []
    for name, ends in found["ends"].items():
        best = found["largest"][name]
        each = ", ".join(f"{rate:g}" if rate else "none" for rate in best["seeds"])
        losses = [f"{loss:.2f}" for loss in middle(ends)]
        rows.append([name, *losses, f"{best['median']:g} ({each})"])
    return table(["", *(f"{rate:g}" for rate in rates), "largest taken (each seed)"], rows)


def xpos() -> str:
    """xPos's section."""
    found = read("xpos")
    s = found["settings"]
    rows = [
        [name, *(f"{x:.3f}" for x in map(mean, zip(*each, strict=True)))]
        for name, each in found["losses"].items()
    ]
    text = f"""
Three decoders that differ in their positions alone, trained on rows of {found["trained"]} bytes
of Python's standard library ({s["updates"]:,} updates of {s["rows"]} rows), then reading held-out
text in longer rows. xPos has its blockwise causal attention. Nats for a byte of a row of so many,
mean of {s["seeds"]} seeds:

"""
    text += table(["", *map(str, found["lengths"])], rows)
    text += picture("Loss by length of rows", "xpos")
    return section("xpos", "xPos: longer rows than those of training", text)


def mean(values: Sequence[float]) -> float:
    """The mean of some values."""
    return sum(values) / len(values)


def grown(name: str, numbers: Sequence[str], found: dict[str, Any]) -> list[str]:
    """A row of exponents."""
    return [name, *(f"{found['exponents'][n]:.2f}" if n else "–" for n in numbers)]


def retnet() -> str:
    """RetNet's section."""
    found = read("retnet")
    lengths, state = found["lengths"], found["decoding"]["retnet"]["bytes"]
    cache = found["decoding"]["llama"]["bytes"]
    text = f"""
After a prompt of {lengths[0]:,} tokens a RetNet of two layers keeps {state[0]:,} bytes, after
{lengths[-1]:,} tokens {state[-1]:,}; a Llama of its size {cache[0]:,} and {cache[-1]:,}. p of
cost ~ length^p, from {lengths[0]:,} to {lengths[-1]:,} tokens:

"""
    rows = [
        grown(f"{name}", [f"{group}/{key}/bytes", f"{group}/{key}/seconds"], found)
        for name, group, key in (
            ("a token, RetNet", "decoding", "retnet"),
            ("a token, Llama with a cache", "decoding", "llama"),
            ("a row, RetNet chunkwise", "rows", "chunkwise"),
            ("a row, RetNet parallel", "rows", "parallel"),
        )
    ]
    text += table(["", "bytes", "seconds"], rows)
    text += picture("Time of a token", "retnet-decoding-seconds")
    text += picture("Memory while decoding", "retnet-decoding-bytes")
    text += picture("Time of rows", "retnet-rows-seconds")
    return section("retnet", "RetNet: a memory of one size", text)


def longnet() -> str:
    """LongNet's section."""
    found = read("longnet")
    patterns = ", ".join(f"({w:,}, {r})" for w, r in found["patterns"])
    costs, far = found["costs"], found["lengths"][-1]
    ratio = costs["dense"]["seconds"][-1] / costs["dilated"]["seconds"][-1]
    text = f"""
One causal attention over rows of {found["lengths"][0]:,} to {far:,} tokens, dilated with the same
patterns of (segment, dilation) at every length: {patterns}. At {far:,} tokens dense attention,
which skips what the mask hides, takes {ratio:.0f} times the processor's time. p of cost ~ length^p:

"""
    rows = [
        grown(name, [f"{name}/{what}" for what in ("flops", "bytes", "seconds")], found)
        for name in costs
    ]
    text += table(["", "operations", "bytes read and written", "seconds"], rows)
    text += """
Operations and bytes are XLA's own count of the compiled program; dense attention is counted with
all scores at once.
"""
    text += picture("Operations by length", "longnet-flops")
    text += picture("Time by length", "longnet-seconds")
    return section("longnet", "LongNet: attention linear in length", text)


def experts() -> str:
    """Experts' section."""
    found = read("experts")
    s, weights, courses = found["settings"], found["weights"], found["courses"]
    last = lambda name, what: [course[what][-1] for course in courses[name]]
    rows = []
    for name, each in courses.items():
        own = weights.get(name, weights["experts, steered"])
        loads = last(name, "maxvio")
        first = mean([course["maxvio"][0] for course in each])
        load = "–" if name == "dense" else f"{first:.1f} → {mean(loads):.2f}"
        loss = f"{mean(last(name, 'losses')):.3f} ({span3(last(name, 'losses'))})"
        rows.append([name, f"{own['all']:,}", f"{own['active']:,}", loss, load])
    text = f"""
Decoders on bytes of Python's standard library, {s["updates"]:,} updates of {s["rows"]} rows of
{s["length"]}, by jscale's own step, with the same batches: one is dense, the others have sixteen
experts a layer of which a token uses two, router and all no larger than the dense feed-forward. No
loss asks for even use; corrections are steered after each step, or left alone. A collapsed router
begins with corrections by which every token has the same two experts. Nats for a byte held out, and
the largest load over the mean, less 1, at the first update and at the last; means of {s["seeds"]}
seeds, losses from where to where:

"""
    text += table(["", "weights", "of a token", "held-out loss", "maxvio"], rows)
    text += picture("Held-out loss by updates", "experts-loss")
    text += picture("Loads by updates", "experts-load")
    text += picture("Loads after a collapse", "experts-collapsed")
    return section("experts", "Experts: more learned with as many weights, and no collapse", text)


def span3(values: Sequence[float]) -> str:
    """The least and the largest of some losses."""
    return f"{min(values):.3f} … {max(values):.3f}"


def page() -> str:
    """The page."""
    machine = read("longnet")["machine"]
    head = HEAD.format(cores=machine["cores"], jax=machine["versions"]["jax"])
    return head + deepnorm() + subln() + xpos() + retnet() + longnet() + experts()


if __name__ == "__main__":
    PAGE.write_text(page())
