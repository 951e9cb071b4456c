"""`jscale moe bench`: a layer of experts by every way to dispatch, stage by stage.

What each way computes is held against one-hot products first, values and gradients. The times go
to the machine's table, from which `dispatch="auto"` picks. Exit status: 0, or 72 where one of them
is not right.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.errors import ConfigError, NumericError, did_you_mean
from jscale.launch.commands.arguments import Parser, add_imports
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.launch.bench.measure import Clock
    from jscale.launch.bench.rows.moe_layer import Case
    from jscale.pallas_kernels.device import Device

SIZES = ("experts", "choices", "dim", "hidden", "tokens")
STEP = "training"  # the pass by which ways are ranked


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep."""
    options = parser().parse_intermixed_args(list(arguments))
    check(options)
    quiet()
    from jscale.launch.bench.measure import clock_of
    from jscale.launch.commands.train import check_devices
    from jscale.mesh import simulate
    from jscale.mesh.devices import skip_absent
    from jscale.models.dispatching import WAYS
    from jscale.pallas_kernels.device import device

    for way in options.by or ():
        if way not in WAYS:
            raise ConfigError(f"no way {way!r} to dispatch; {did_you_mean(way, WAYS)}")
    skip_absent()
    if options.devices is not None:
        simulate(check_devices(options.devices))
    where = device()
    path = table_of(where, options.table)
    clock, false = clock_of(where.platform, options.quick), []
    for case in cases_of(options, where):
        found = measure(case, options.by or tuple(WAYS), clock, where)
        say(found, clock)
        matmul(case, clock, where, options.quick)
        keep(path, case, found, where)
        false += [f"{by!r} ({case})" for by, s in found["silent"].items() if "wrong" in s]
    if false:
        raise NumericError(f"not right, and so not timed: {', '.join(false)}")
    return 0


def parser() -> Parser:
    out = Parser(
        prog="jscale moe bench",
        description="Time router, dispatch, experts and combine of a layer by every way to dispatch"
        " and every grouped matmul, hold them against one-hot products, and keep the times for"
        " dispatch=auto.",
    )
    out.add_argument("recipe", metavar="RECIPE", nargs="?", help="whose layers are measured")
    out.add_argument(
        "overrides", metavar="field=value", nargs="*", default=[], help="of the recipe"
    )
    add_imports(out)
    for name, help in (
        ("experts", "or, without a recipe: how many experts there are"),
        ("choices", "experts of a token"),
        ("dim", "size of a token"),
        ("hidden", "size inside an expert"),
        ("tokens", "of a batch, on all devices together"),
    ):
        out.add_argument(f"--{name}", type=int, metavar="N", help=help)
    out.add_argument("--dtype", help="of tokens and weights (bfloat16; float32 on a CPU)")
    out.add_argument("--devices", type=int, metavar="N", help="simulate N devices on the processor")
    out.add_argument(
        "--skew", type=float, metavar="S", help="expert e is used as (e + 1)^-S (0.2; 0: evenly)"
    )
    out.add_argument(
        "--room", type=float, metavar="R", help="even shares for which devices have room"
    )
    out.add_argument("--by", nargs="+", metavar="WAY", help="local, gather, ... (all)")
    out.add_argument("--quick", action="store_true", help="few turns: rough times")
    out.add_argument("--table", metavar="FILE", help="for the times (in ~/.cache/jscale/tiles)")
    return out


def check(options: Any) -> None:
    """Raises ConfigError unless there is either a recipe or all sizes of a layer."""
    given = [name for name in SIZES if getattr(options, name) is not None]
    if options.recipe is not None and given:
        raise ConfigError(f"--{given[0]} is for a layer without a recipe: name one or the other")
    missing = [name for name in SIZES if name not in given]
    if options.recipe is None and missing:
        raise ConfigError(
            "jscale moe bench takes a RECIPE, or"
            f" {' '.join(f'--{name} N' for name in SIZES)}; --{missing[0]} is missing"
        )
    for name in given:
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")


def table_of(where: "Device", asked: str | None) -> Path:
    """The table that is to be written, which can be read.

    Raises:
        ConfigError: there is no place for one, or what is there is no table.
    """
    from jscale.pallas_kernels.tiles.table import own, read

    path = Path(asked) if asked else own(where.kind)
    if path is None:
        raise ConfigError("no home folder for a table of times: give --table FILE")
    read(path)  # before the work
    return path


def cases_of(options: Any, where: "Device") -> "list[Case]":
    """The layers that are asked for, each kind once."""
    import jax

    from jscale.launch.bench.rows.moe_layer import UNEVEN, Case

    dtype = options.dtype or ("float32" if where.platform == "cpu" else "bfloat16")
    load = {"skew": UNEVEN if options.skew is None else options.skew, "room": options.room}
    if options.recipe is not None:
        return [replace(case, **load) for case in recipes_layers(options)]
    sizes = {name: getattr(options, name) for name in SIZES}
    return [Case(**sizes, devices=jax.device_count(), dtype=dtype, **load)]


def recipes_layers(options: Any) -> "list[Case]":
    """A recipe's layers of experts, as the devices at hand that share experts see them.

    Experts of another form count as SwiGLUs with as many weights.

    Raises:
        ConfigError: it has none.
    """
    from flax import nnx

    from jscale.launch.bench.rows.moe_layer import Case
    from jscale.launch.commands.arguments import recipe_from
    from jscale.models.moe import Mixture
    from jscale.prepare import real_mesh, task_of

    recipe = recipe_from(options).value
    task = task_of(recipe, real_mesh(recipe)[0])
    network = task.model.bind(task.model.shapes)
    layers = [layer for _, layer in nnx.iter_graph(network) if isinstance(layer, Mixture)]
    tokens = recipe.data.batch // recipe.accumulate * recipe.data.length
    found: dict[Case, None] = {}
    for layer in layers:
        with task.layout.active():
            spread = layer.way(tokens).spread
        n, count = spread.devices, layer.c.experts
        hidden = max(1, round(spread.weights / (3 * spread.dim * count)))
        sizes = spread.tokens * n, spread.dim, hidden, count, spread.choices, n
        found[Case(*sizes, dtype=options.dtype or task.precision.compute)] = None
    if not found:
        raise ConfigError(f"{recipe.name} has no layer of experts to measure")
    return list(found)


def measure(case: "Case", ways: Sequence[str], clock: "Clock", where: "Device") -> dict[str, Any]:
    """Figures of the whole layer by way, as of any subject, and seconds of the stages of each."""
    from jscale.launch.bench.case import measure as one
    from jscale.launch.bench.ceiling import ceiling_of
    from jscale.launch.bench.measure import take_turns
    from jscale.launch.bench.moe_stages import stages
    from jscale.launch.bench.rows.moe_layer import SUBJECT

    some = lambda case: {n: c for n, c in SUBJECT.contenders(case).items() if n in ways}
    picked = SUBJECT.chosen(case)
    base = picked if picked in ways else ways[0]
    subject = replace(SUBJECT, contenders=some, chosen=lambda case: base)
    ceiling = ceiling_of(where.platform, case.dtype, clock, quick=True)
    found = one(subject, case, ["forward", STEP], ceiling, clock, where)
    right = [by for by in found["ours"] if by not in found["silent"]]
    programs = {(by, name): p for by in right for name, p in stages(case, by).items()}
    times = {key: t.middle for key, t in take_turns(programs, clock).items()}
    return {**found, "right": right, "stages": times}


def say(found: Mapping[str, Any], clock: "Clock") -> None:
    """Print who took how long for what."""
    from jscale.checkpoint.sizes import readable
    from jscale.launch.bench.moe_stages import STAGES
    from jscale.launch.commands.tables import show

    print(f"{found['title']}\nmilliseconds in {clock.kind}, medians of turns:")
    ms = lambda seconds: f"{1e3 * seconds:,.3f}"
    passes = {n: found["passes"][n]["contenders"] for n in ("forward", STEP)}
    header = ("by", *STAGES, "layer", "and back", f"as {found['chosen']}", "temporaries")
    rows = []
    for by in sorted(found["right"], key=lambda by: passes[STEP][by]["seconds"]):
        whole = [passes[n][by] for n in ("forward", STEP)]
        ratio, size = whole[1]["ratio"], whole[1]["temporaries"]
        parts = [ms(found["stages"][by, name]) for name in STAGES]
        last = "" if ratio is None else f"{ratio:.2f}", "" if size is None else readable(size)
        rows.append((by, *parts, *(ms(w["seconds"]) for w in whole), *last))
    if rows:
        show(header, rows, numbers=header[1:])
    for by, why in found["silent"].items():
        print(f"{by}: {' '.join(f'{kind}: {text}' for kind, text in why.items())}")
    sys.stdout.flush()


def matmul(case: "Case", clock: "Clock", where: "Device", quick: bool) -> None:
    """Measure and print every grouped matmul, with as many rows as a device has of even use."""
    from jscale.launch.bench.case import measure as one
    from jscale.launch.bench.ceiling import ceiling_of
    from jscale.launch.bench.rows import grouped_matmul as row
    from jscale.launch.commands.bench import say

    rows = case.tokens * case.choices // case.devices
    groups = case.experts // case.devices
    ceiling = ceiling_of(where.platform, case.dtype, clock, quick)
    for inner, outer in ((case.dim, case.hidden), (case.hidden, case.dim)):
        call = row.Case(rows, inner, outer, groups, case.dtype)
        say(one(row.SUBJECT, call, ["forward", STEP], ceiling, clock, where))
        if inner == outer:
            break


def keep(path: Path, case: "Case", found: Mapping[str, Any], where: "Device") -> None:
    """Write the times of a layer's ways to a table, and say what `auto` makes of them.

    One-hot products are left out: their tables grow with the square of the tokens, and a row is for
    up to twice as many as were measured.
    """
    import time

    import jax

    from jscale.models.measured import Class
    from jscale.pallas_kernels.tiles.processor import processor
    from jscale.pallas_kernels.tiles.table import own, write

    figures = found["passes"][STEP]["contenders"]
    seconds = {by: figures[by]["seconds"] for by in found["right"] if by != "one_hot"}
    if case.devices == 1 or not seconds:
        print("\nnothing is kept: " + ("there is nothing to pick" if seconds else "none was timed"))
        return
    date = time.strftime("%Y-%m-%d", time.gmtime())
    told = {"case": found["case"], "date": date, "jax": jax.__version__, "processor": processor()}
    mine = Class.of(case.way("auto").spread, case.room, where)
    write(path, where.kind, mine.row(seconds, told))
    print(f"\nkept in {path}")
    if path == own(where.kind):
        print(f"auto: {case.way('auto')}")
