"""`jscale import [FORMAT] WEIGHTS [RECIPE]`: a run that starts from weights trained elsewhere."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.errors import ConfigError
from jscale.launch.commands.arguments import Parser, add_imports, resolve
from jscale.launch.commands.forms import ANY, FORMS, check_release, home_of, table_of
from jscale.launch.commands.progress import progress
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.recipe import Recipe

RELEASES = "huggingface"  # the format that says its own model
DEFAULT = "further"  # the recipe by which such a model goes on where none is named


def main(arguments: Sequence[str]) -> int:
    """Make a run's folder whose step 0 has these weights."""
    options = parser().parse_intermixed_args(list(arguments))
    quiet()
    from jscale.formats.files import Files
    from jscale.formats.table import some
    from jscale.run.adopt import adopt

    form, weights, recipe = asked(options)
    folder = Path(options.run or Path("runs") / recipe.name)
    check_release(form, recipe.model, weights)
    table = table_of(form, recipe.model)
    with Files(weights) as tensors, progress("bytes in place") as tell:
        adopt(recipe, folder, table, tensors, tell)
        left = table.passed(tensors)
    print(f"{len(tensors) - len(left)} weights of {weights} are step 0 of {folder}")
    if left:
        print(f"{len(left)} have no place in the model: {some(left)}")
    print(f"jscale train {folder}  goes on from there")
    return 0


def parser() -> Parser:
    out = Parser(
        prog="jscale import",
        usage="jscale import [FORMAT] WEIGHTS [RECIPE] [field=value ...] [--run FOLDER]",
        description="Start a run from weights trained elsewhere (safetensors). FORMAT says whose"
        f" they are: {ANY}. Without it they are a release of transformers, and without RECIPE its"
        f" model and tokenizer go on by the recipe {DEFAULT!r}.",
    )
    out.add_argument(
        "words",
        nargs="+",
        metavar="[FORMAT] WEIGHTS [RECIPE] [field=value ...]",
        help="WEIGHTS: a folder, a .safetensors file, an index",
    )
    out.add_argument("--run", metavar="FOLDER", help="the run's folder (runs/NAME); it must be new")
    add_imports(out)
    return out


def asked(options: argparse.Namespace) -> tuple[str, Path, "Recipe"]:
    """The format, where the weights are, and the recipe that the words of the command say.

    Raises:
        ConfigError: they are too few or too many, or there is no such format or recipe.
        DataError: there are no such weights.
    """
    is_change = lambda word: "=" in word and not os.path.exists(word)
    changes = [word for word in options.words if is_change(word)]
    words = [word for word in options.words if not is_change(word)]
    named = bool(words) and (words[0] in FORMS or words[0].endswith(".py"))
    form, *words = words if named else [RELEASES, *words]
    if not 1 <= len(words) <= 2:
        raise ConfigError(
            f"jscale import takes [FORMAT] WEIGHTS [RECIPE], not {' '.join(options.words)!r}; a"
            f" FORMAT is {ANY}"
        )
    weights = place_of(words[0], form)
    if len(words) == 2:
        return form, weights, resolve(words[1], changes, options.imports).value
    if form != RELEASES:
        raise ConfigError(
            f"weights of {form} do not say which model they are of: name a recipe after {weights}"
        )
    return form, weights, going_on(home_of(weights), changes)


def place_of(name: str, form: str) -> Path:
    """Where weights are; a release that is nowhere here is fetched from the hub.

    Raises:
        DataError: they are nowhere.
    """
    from jscale.pretrained import folder_of

    path = Path(name).expanduser()
    return folder_of(name) if form == RELEASES and not path.exists() else path


def going_on(folder: Path, changes: Sequence[str]) -> "Recipe":
    """The default recipe with the model and the tokenizer of a release, and what is to be changed.

    Raises:
        ConfigError: the release is of an unknown architecture or has no tokenizer.
    """
    from jscale.config.override import override, parse_overrides
    from jscale.data import TokenizerFile
    from jscale.formats import huggingface

    overrides = parse_overrides(changes)
    recipe: Any = resolve(DEFAULT).value
    model = huggingface.config_of(folder)
    data = recipe.data
    if (folder / "tokenizer.json").is_file():
        data = replace(data, tokenizer=TokenizerFile(str(folder.absolute())))
    elif "data.tokenizer" not in overrides and "data" not in overrides:
        raise ConfigError(
            f"{folder} has no tokenizer.json: say which tokens it is of, as in"
            " data.tokenizer='TokenizerFile(\"other/tokenizer.json\")'"
        )
    data = replace(data, length=min(data.length, getattr(model, "longest", data.length)))
    name = folder.absolute().name.replace(":", "-")
    return override(replace(recipe, name=name, model=model, data=data), overrides)
