"""What commands share: `RECIPE [field=value ...]`, and complaints in one sentence."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jscale.config.load import Loaded, load, load_file
from jscale.config.override import override, parse_overrides
from jscale.config.suggest import suggest
from jscale.config.tree import nodes
from jscale.config.why import Setting, why
from jscale.errors import ConfigError

if TYPE_CHECKING:
    from jscale.run.restored import Run


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its complaint as a `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        """Raise `message`, with the command that it is about."""
        raise ConfigError(f"{message} (try {self.prog} --help)")


@dataclass(frozen=True)
class Resolved:
    """A recipe with the overrides of the command line applied."""

    value: Any
    loaded: Loaded
    overrides: Mapping[str, str]
    types: tuple[type, ...]

    def why(self) -> list[Setting]:
        """Every value with where it came from."""
        return why(self.loaded, self.overrides, self.types)


def recipe_parser(command: str, description: str) -> Parser:
    """A parser for `jscale COMMAND RECIPE [field=value ...] [--import FILE]`; add options to it.

    Parse with `parse_intermixed_args`, so that overrides may stand anywhere after the recipe.
    """
    parser = Parser(prog=f"jscale {command}", description=description)
    add_recipe(parser)
    return parser


def add_recipe(parser: Parser) -> None:
    """Let the user name a recipe, and what to change of it."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a shipped recipe, a file (my.py or my.py:function), or a run folder",
    )
    parser.add_argument(
        "overrides",
        metavar="field=value",
        nargs="*",
        default=[],
        help="values to change: model.layers=4",
    )
    add_imports(parser)


def run_parser(command: str, description: str) -> Parser:
    """A parser for `jscale COMMAND RUN [--step N] [--import FILE]`; add options to it."""
    parser = Parser(prog=f"jscale {command}", description=description)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--step", type=int, help="a checkpoint's step (the newest)")
    add_imports(parser)
    return parser


def add_imports(parser: Parser) -> None:
    """Let the user name files whose types a run folder's recipe may use."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="FILE",
        action="append",
        default=[],
        help="a Python file whose types the run folder's recipe uses (it is executed)",
    )


def run_from(arguments: argparse.Namespace) -> "Run":
    """The trained run that a `run_parser`'s arguments ask for; its notes go to standard error.

    Raises:
      UserError: the folder is no run, or what is in it cannot be used.
    """
    from jscale.run.restored import open_run

    allow = [load_file(Path(file)) for file in arguments.imports]
    run = open_run(Path(arguments.run).absolute(), arguments.step, allow)
    for note in run.notes:
        print(f"jscale: {note}", file=sys.stderr)
    return run


def recipe_from(arguments: argparse.Namespace) -> Resolved:
    """The recipe that a `recipe_parser`'s arguments ask for.

    Raises:
      ConfigError: there is no such recipe, it has an error, or an override does not fit.
    """
    return resolve(arguments.recipe, arguments.overrides, arguments.imports)


def resolve(name: str, overrides: Sequence[str] = (), imports: Sequence[str] = ()) -> Resolved:
    """The recipe `name` with `overrides` (each `field=value`) applied.

    Raises:
      ConfigError: there is no such recipe, it has an error, or an override does not fit.
    """
    from jscale.launch import recipes
    from jscale.recipe import Recipe

    allow = [load_file(Path(file)) for file in imports]
    loaded = load(name, recipes, allow, expect=Recipe)
    for note in loaded.notes:
        print(f"jscale: {note}", file=sys.stderr)
    _check_form(overrides, loaded.value)
    changes = parse_overrides(overrides)
    types = _types(loaded)
    return Resolved(override(loaded.value, changes, types), loaded, changes, types)


def _check_form(overrides: Sequence[str], value: Any) -> None:
    """Say of a word without `=` which field it may have meant."""
    for text in overrides:
        if "=" not in text:
            hint = suggest(text, [path for path, _ in nodes(value)])
            raise ConfigError(f"{text!r} is not an override: write field=value; {hint}")


def _types(loaded: Loaded) -> tuple[type, ...]:
    """The dataclasses that the recipe's own file defines or imports: overrides may name them."""
    names = vars(loaded.module) if loaded.module else {}
    return tuple(x for x in names.values() if isinstance(x, type) and is_dataclass(x))
