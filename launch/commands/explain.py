"""`jscale explain RECIPE`: where every parameter goes and what it costs, before anything runs."""

import fnmatch
from collections.abc import Sequence

from jscale.launch.commands.arguments import recipe_from, recipe_parser
from jscale.launch.quiet import quiet


def main(arguments: Sequence[str]) -> int:
    """Print the sharding and the bytes per device of every parameter; no device is needed."""
    parser = recipe_parser("explain", "Where every parameter goes on the mesh, and its bytes.")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="suppose N devices, present or not"
    )
    parser.add_argument("--param", metavar="PATTERN", help="only parameters of such names")
    options = parser.parse_intermixed_args(list(arguments))
    quiet()
    return describe(recipe_from(options).value, options.devices, options.param)


def describe(recipe, devices: int | None = None, pattern: str | None = None) -> int:
    """Print the table of a recipe's parameters and what all of the state takes."""
    from jscale.explain import explain
    from jscale.launch.commands.tables import show

    found = explain(recipe, devices)
    print(f"mesh: {found.mesh} ({found.reason})")
    rows = [row for row in found.rows if matches(row.name, pattern)]
    header = ("parameter", "shape", "axes", "decided by", "per device")
    show(header, [row.cells(found.mesh) for row in rows], numbers=("per device",))
    print()
    for line in found.totals():
        print(line)
    return 0


def matches(name: str, pattern: str | None) -> bool:
    return pattern is None or pattern in name or fnmatch.fnmatch(name, pattern)
