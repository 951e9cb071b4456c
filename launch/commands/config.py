"""`jscale config`: every value of a recipe and where it came from, or how two differ."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jscale.config.data import fingerprint
from jscale.config.diff import diff
from jscale.config.show import show_differences, show_settings
from jscale.config.suggest import suggest
from jscale.config.tree import shown
from jscale.config.why import explained
from jscale.errors import ConfigError
from jscale.launch.commands.arguments import Resolved, recipe_from, recipe_parser, resolve


def main(arguments: Sequence[str]) -> int:
    """Print a recipe, one field of it with its documentation, or its differences from another."""
    parser = recipe_parser("config", "Show a recipe: every value, and where it came from.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--why", metavar="FIELD", help="only this field, and what it is for")
    choice.add_argument("--diff", metavar="OTHER", help="only what differs in this other recipe")
    parser.add_argument("--full", action="store_true", help="long values whole, on a terminal too")
    parser.add_argument(
        "--reference", action=Reference, help="every part of a recipe and its fields, and exit"
    )
    asked = parser.parse_intermixed_args(arguments)
    resolved = recipe_from(asked)
    if asked.why:
        _show_why(resolved, asked.why, asked.full)
    elif asked.diff:
        _show_diff(resolved, resolve(asked.diff, imports=asked.imports))
    else:
        print(f"{_title(resolved)}, fingerprint {fingerprint(resolved.value)}\n")
        show_settings(resolved.why(), full=asked.full)
    return 0


class Reference(argparse.Action):
    """Prints the reference of recipes as Markdown and ends, as --help does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and exit."""
        from jscale.config.reference import reference
        from jscale.recipe import Recipe

        print(reference(Recipe), end="")
        parser.exit()


def _title(resolved: Resolved) -> str:
    return f"{type(resolved.value).__name__} of {shown(resolved.loaded.source)}"


def _show_why(resolved: Resolved, field: str, full: bool) -> None:
    """Print the settings at and below `field`, with what their classes say of them."""
    settings = explained(resolved.value, resolved.why())
    found = [x for x in settings if x.path == field or x.path.startswith(f"{field}.")]
    if not found:
        here, _, name = field.rpartition(".")
        hint = suggest(name, [setting.path for setting in settings], here)
        raise ConfigError(f"{_title(resolved)} has no field {field!r}; {hint}")
    show_settings(found, full=full)


def _show_diff(resolved: Resolved, other: Resolved) -> None:
    """Print the differences; that there are none is said where it does not get in the way."""
    found = diff(resolved.value, other.value)
    show_differences(found)
    if not found:
        print("no differences", file=sys.stderr)
