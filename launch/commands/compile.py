"""`jscale compile RECIPE --on MACHINE`: would it run there? Compiled for real, with no such device.

Exit status: 0 it fits (or nobody says how much memory a device has), 73 it does not, else as for
every command.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from jscale.errors import ConfigError, DeviceMemoryError, did_you_mean
from jscale.launch.commands.arguments import Parser, recipe_from, recipe_parser
from jscale.launch.interrupts import nothing_to_close
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.ahead import Report
    from jscale.mesh import MeshShape
    from jscale.recipe import Recipe


def main(arguments: Sequence[str]) -> int:
    """Compile the train step and say what it takes on each device; nothing is run."""
    options = parser().parse_intermixed_args(list(arguments))
    quiet()
    recipe = recipe_from(options).value
    if options.mesh:
        recipe = replace(recipe, mesh=mesh_from(options.mesh))
    with nothing_to_close():
        report = compiled(recipe, options.on)
    if options.mesh:
        report = replace(report, reason="named by --mesh")
    if options.json:
        print(json.dumps(as_data(report), indent=2))
    else:
        describe(report)
    return DeviceMemoryError.status if report.fits is False else 0


def parser() -> Parser:
    out = recipe_parser(
        "compile",
        "Compile the train step for a machine, present or not, and say what memory it takes there.",
    )
    out.add_argument(
        "--on", metavar="MACHINE", help="v5p-64, 2xv6e-256, h100:8x4, cpu:8 (the devices at hand)"
    )
    out.add_argument(
        "--mesh", metavar="AXIS=N,...", help="instead of the recipe's: fsdp=8,tensor=2"
    )
    out.add_argument("--json", action="store_true", help="say it as JSON")
    return out


def mesh_from(text: str) -> "MeshShape":
    """The mesh of `fsdp=8,tensor=2`.

    Raises:
        ConfigError: an unknown axis, or no number.
    """
    from jscale.mesh import MESH_AXES, MeshShape

    sizes = {}
    for part in text.replace(" ", "").split(","):
        axis, _, number = part.partition("=")
        if axis not in MESH_AXES:
            raise ConfigError(f"--mesh: no axis {axis!r}; {did_you_mean(axis, MESH_AXES)}")
        if not number.isdecimal():
            raise ConfigError(f"--mesh: {part!r} is not of the form fsdp=8")
        if axis in sizes:
            raise ConfigError(f"--mesh: {axis!r} is named twice")
        sizes[axis] = int(number)
    return MeshShape(**sizes)


def compiled(recipe: "Recipe", machine: str | None) -> "Report":
    """The report of compiling, with a sign of life on standard error while that takes its time."""
    import jax
    from rich.console import Console

    from jscale.ahead import compile_for
    from jscale.mesh.compat import started
    from jscale.mesh.target import target
    from jscale.metrics.progress import Progress

    where = None if machine is None else target(machine)
    if where is not None and not started():
        jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is touched
    name = "the devices at hand" if where is None else where.name
    with Progress(0, console=Console(stderr=True)) as progress:
        with progress.phase(f"compiling the train step of {recipe.name} for {name}"):
            return compile_for(recipe, where)


def describe(report: "Report") -> None:
    """Print the machine, the mesh, a table of bytes, and the verdict."""
    from jscale.checkpoint.sizes import readable
    from jscale.compiled import LESS
    from jscale.launch.commands.tables import show

    print(f"machine: {report.target}")
    print(f"mesh: {report.mesh} ({report.reason})")
    rows = [(name, readable(count)) for name, count in account(report)]
    show(("on each device", "memory"), rows, numbers=("memory",))
    print(f"\n{verdict(report)}")
    if report.fits is False:
        print(f"{LESS[0].upper()}{LESS[1:]}.")


def account(report: "Report") -> list[tuple[str, int]]:
    """What lies on one device, by name; the state's parts alone where the compiler gave up."""
    if report.memory is None:
        return list(report.state.items())
    memory, state = report.memory, report.state
    rest = max(0, memory.arguments - sum(state.values()))
    return [
        *state.items(),
        ("batch and padding", rest),
        ("temporaries", memory.temporaries),
        ("results", memory.outputs),
        ("program", memory.program),
        ("in all", memory.total),
    ]


def verdict(report: "Report") -> str:
    """One sentence: whether it fits, and by how much."""
    from jscale.checkpoint.sizes import readable
    from jscale.compiled import short

    has = report.target.memory
    if report.refusal is not None:
        return f"does not fit: {short(report.refusal)}"
    if report.needed is None or has is None:
        return "whether it fits is not known: these devices do not say how much memory they have"
    percent = round(100 * report.needed / has)
    share = f"{readable(report.needed)} of {readable(has)}, {percent or 'less than 1'}%"
    return f"fits: {share}" if report.fits else f"does not fit: {share}"


def as_data(report: "Report") -> dict[str, Any]:
    """The report as plain data; bytes on one device, seconds."""
    where, memory = report.target, report.memory
    return {
        "recipe": report.recipe,
        "machine": {
            "name": where.name,
            "chip": where.chip.name if where.chip else None,
            "chips": where.chips,
            "devices": where.count,
            "shape": where.shape,
            "parts": where.parts,
            "memory": where.memory,
        },
        "mesh": asdict(report.mesh),
        "reason": report.reason,
        "seconds": report.seconds,
        "state": report.state,
        "memory": None if memory is None else {**memory._asdict(), "total": memory.total},
        "needed": report.needed,
        "fits": report.fits,
        "refusal": report.refusal,
    }
