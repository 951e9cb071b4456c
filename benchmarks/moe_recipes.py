"""What recipes with experts need on their machines, by the compilers that these machines use.

    python benchmarks/moe_recipes.py [NAME ...] [--missing]

Which machines a recipe is for stands in the table of its file; each row of it is compiled ahead of
time (`jscale compile NAME:FUNCTION --on MACHINE`) and written back, with the mesh and the memory of
one device. Rows of `long` are compiled after them: one recipe with tens of thousands of packed
tokens on each device, and what it would need without one or another way to save memory. The
compilers' own accounts, in bytes, are kept in benchmarks/results/moe_recipes.json, and the tables
of docs/moe_recipes.md are made of them. `--missing` leaves out what is there already.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jscale.launch.commands.arguments import resolve
from jscale.launch.recipes import qwen3_30b_a3b
from jscale.losses import Batch, NextToken, Terms
from jscale.models.decoder import Output, logprobs
from jscale.recipe import Recipe

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "launch" / "recipes"
RESULT = Path(__file__).parent / "results" / "moe_recipes.json"
ROW = re.compile(r"^    (\w+) +([a-z]\w*[:-]\S+) +(.*)$", re.MULTILINE)
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-pjrt")
GIB = 2**30
PAGE = ROOT / "docs" / "moe_recipes.md"
BEGIN, END = "<!-- made by benchmarks/moe_recipes.py -->\n", "<!-- end of it -->"
LONG_HEAD = """\
Qwen3-30B-A3B, all weights fine-tuned, 32,768 packed tokens of each of 16 devices at a time:

| | machine | temporaries, GiB | memory of a device, GiB |
|---|---|---|---|"""
LONG = "benchmarks/moe_recipes.py"
LONG_MACHINES = ("h200:8x2", "v5p-32")
# By what the recipe is changed; the first is the recipe that is advised.
LONG_ROWS = (
    ("recipe", ()),
    ("recipe", ("model.remat=offload",)),
    ("recipe", ("model.remat=dots",)),
    ("recipe", ("model.remat=none",)),
    ("whole_logits", ()),
)


def recipe() -> Recipe:
    """Qwen3-30B-A3B, fine-tuned on 32,768 packed tokens of each device at a time."""
    whole = qwen3_30b_a3b.finetune()
    return replace(whole, name="long", data=replace(whole.data, length=32_768))


@dataclass(frozen=True)
class WholeLogits(NextToken):
    """`NextToken` of logits that are all held at once: what chunks are compared with."""

    def terms(self, network: Any, out: Output, batch: Batch) -> Terms:
        """The terms of what a network has made of a batch."""
        weights = batch["weights"].astype("float32")
        logp, _ = logprobs(network.unembed(out.hidden), batch["targets"])
        return Terms(-logp + out.penalty, weights, {}, out.loads)


def whole_logits() -> Recipe:
    """The same with all logits held at once."""
    return replace(recipe(), loss=WholeLogits())


def tables() -> Iterator[tuple[str, str, str]]:
    """File, function and machine of every row of every recipe's table."""
    for path in sorted(RECIPES.glob("*.py")):
        for function, machine, _ in ROW.findall(path.read_text(encoding="utf-8")):
            yield path.stem, function, machine


def wanted() -> list[tuple[str, str, tuple[str, ...]]]:
    """All rows: what is compiled, for which machine, changed by what."""
    rows = [(f"{file}:{function}", machine, ()) for file, function, machine in tables()]
    long = [(f"{LONG}:{name}", m, by) for m in LONG_MACHINES for name, by in LONG_ROWS]
    return [*rows, *long]


def measure(name: str, machine: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """One row: what the command says, without what nobody needs to keep."""
    command = [sys.executable, "-m", "jscale.launch.cli", "compile", name, *changes]
    done = subprocess.run(
        [*command, "--on", machine, "--json"], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode not in (0, 73):
        raise SystemExit(f"{name} for {machine}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    asked: Any = resolve(str(ROOT / name) if name.startswith(LONG) else name, changes).value
    mesh = " ".join(f"{axis}={n}" for axis, n in told["mesh"].items() if n > 1)
    return {
        "recipe": name,
        "machine": machine,
        "changes": list(changes),
        "mesh": mesh,
        "rows": asked.data.batch // asked.accumulate,
        "length": asked.data.length,
        "accumulate": asked.accumulate,
        "remat": asked.model.remat,
        "state": told["state"],
        "memory": told["memory"],
        "needed": told["needed"],
        "has": told["machine"]["memory"],
        "fits": told["fits"],
        "refusal": told["refusal"] and told["refusal"].splitlines()[0],
        "seconds": round(told["seconds"], 1),
        "versions": {package: version(package) for package in PACKAGES},
    }


def shown(row: dict[str, Any]) -> str:
    """Mesh and memory as the table of a recipe has them."""
    return f"{row['mesh']:<18} {_share(row):>14} GiB"


def write_back(row: dict[str, Any]) -> None:
    """Bring the table of the recipe's file up to date."""
    file, _, function = row["recipe"].partition(":")
    path = RECIPES / f"{file}.py"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")

    def line(found: re.Match[str]) -> str:
        if found.group(1, 2) != (function, row["machine"]):
            return found[0]
        return f"    {function:<9} {row['machine']:<10} {shown(row)}"

    path.write_text(ROW.sub(line, text), encoding="utf-8")


def key(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    return row["recipe"], row["machine"], tuple(row["changes"])


def kept() -> dict[Any, dict[str, Any]]:
    """The rows that are there."""
    if not RESULT.is_file():
        return {}
    return {key(row): row for row in json.loads(RESULT.read_text(encoding="utf-8"))}


def table(rows: list[dict[str, Any]]) -> str:
    """What recipes need, and what long rows do, as docs/moe_recipes.md has it."""
    head = "| recipe | machine | mesh | tokens of a device at a time | memory of a device, GiB |\n"
    plain = [r for r in rows if not r["recipe"].startswith(LONG)]
    lines = [f"{head}|---|---|---|---|---|"]
    for row in plain:
        lines.append(f"| `{row['recipe'].removesuffix(':recipe')}` | {_where(row)} |")
    lines += ["", LONG_HEAD]
    lines += [
        f"| {_what(row)} | `{row['machine']}` | {_gib(row)} |" for row in rows if row not in plain
    ]
    return "\n".join(lines) + "\n"


def _where(row: dict[str, Any]) -> str:
    devices = math.prod(int(part.split("=")[1]) for part in row["mesh"].split())
    tokens = row["rows"] * row["length"] // devices
    return f"`{row['machine']}` | {row['mesh']} | {tokens:,} | {_share(row)}"


def _what(row: dict[str, Any]) -> str:
    if row["recipe"].endswith(":whole_logits"):
        return "with all logits at once"
    return f"`{row['changes'][0]}`" if row["changes"] else "the recipe: `full`, logits in chunks"


def _gib(row: dict[str, Any]) -> str:
    temporaries = "?" if row["memory"] is None else f"{row['memory']['temporaries'] / GIB:.1f}"
    verdict = "" if row["fits"] else ", does not fit"
    return f"{temporaries} | {_share(row)}{verdict}"


def _share(row: dict[str, Any]) -> str:
    return f"{row['needed'] / GIB:.1f} of {row['has'] / GIB:.1f}"


def write_page() -> None:
    """Bring the tables of docs/moe_recipes.md up to date."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    made = table(list(kept().values()))
    PAGE.write_text(f"{before}{BEGIN}{made}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="What recipes with experts need.")
    parser.add_argument("names", nargs="*", help="mixtral_8x7b, mixtral_8x7b:finetune, long (all)")
    parser.add_argument("--missing", action="store_true", help="only what is not there yet")
    parser.add_argument("--on", help="only machines whose names begin so")
    asked = parser.parse_args()
    chosen = lambda name: (
        not asked.names
        or any(
            name in (n, f"{n}:{name.partition(':')[2]}") or (n == "long" and name.startswith(LONG))
            for n in asked.names
        )
    )
    order = wanted()
    for name, machine, changes in order:
        if not chosen(name) or not machine.startswith(asked.on or ""):
            continue
        if asked.missing and (name, machine, changes) in kept():
            continue
        row = measure(name, machine, changes)
        print(
            name, machine, *changes, shown(row), "" if row["fits"] else "DOES NOT FIT", flush=True
        )
        write_back(row)
        rows = {**kept(), key(row): row}  # read anew: another process may have written
        kept_rows = [rows[k] for k in order if k in rows]
        RESULT.write_text(json.dumps(kept_rows, indent=2) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
