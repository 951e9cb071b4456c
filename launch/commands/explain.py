"""`jscale explain RECIPE`: where every parameter goes and what it costs, before anything runs."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from jscale.errors import ConfigError
from jscale.launch.commands.arguments import recipe_from, recipe_parser
from jscale.launch.quiet import quiet


def main(arguments: Sequence[str]) -> int:
    """Print the sharding and the bytes per device of every parameter; no device is needed."""
    parser = recipe_parser("explain", "Where every parameter goes on the mesh, and its bytes.")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="suppose N devices, present or not"
    )
    parser.add_argument("--param", metavar="PATTERN", help="only parameters of such names")
    parser.add_argument(
        "--html",
        metavar="FILE",
        nargs="?",
        const="",
        help="draw it as a page (<recipe's name>.layout.html); give it last, or with a FILE",
    )
    options = parser.parse_intermixed_args(list(arguments))
    quiet()
    recipe = recipe_from(options).value
    if options.html is not None:
        return draw_page(recipe, options.devices, options.param, options.html)
    return describe(recipe, options.devices, options.param)


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


def draw_page(recipe, devices: int | None, pattern: str | None, file: str) -> int:
    """Write the page of a recipe's parameters on their mesh, and say where it is."""
    from jscale.explain import as_data, explain
    from jscale.report import explained_page
    from jscale.report.write import write_page

    path = Path(file or f"{recipe.name}.layout.html")
    if path.suffix != ".html":
        raise ConfigError(f"--html takes the name of a file that ends in .html, not {file!r}")
    found = explain(recipe, devices)
    only = None if pattern is None else {r.name for r in found.rows if matches(r.name, pattern)}
    print(f"written: {write_page(explained_page(recipe.name, as_data(found), only), path)}")
    return 0


def matches(name: str, pattern: str | None) -> bool:
    return pattern is None or pattern in name or fnmatch.fnmatch(name, pattern)
