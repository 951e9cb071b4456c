"""`jscale recipes`: list the recipes that come with jscale, or copy one to edit."""

from collections.abc import Sequence
from pathlib import Path

from jscale.config.load import Shipped, shipped
from jscale.config.show import show_rows
from jscale.errors import ConfigError, did_you_mean
from jscale.launch.commands.arguments import Parser

HEADER = """\
# A copy of jscale's recipe {name!r}, yours to edit.
#   jscale config {dest}    shows every value and where it came from
#   jscale train {dest}     trains it
"""


def main(arguments: Sequence[str]) -> int:
    """Print the recipes, or copy one without ever overwriting a file."""
    parser = Parser(prog="jscale recipes", description="List the recipes, or copy one to edit.")
    actions = parser.add_subparsers(dest="action", metavar="[copy NAME [DEST]]")
    copy = actions.add_parser("copy", help="write a recipe to a file of yours (NAME.py by default)")
    copy.add_argument("name", metavar="NAME", help="a recipe of the list")
    copy.add_argument("dest", metavar="DEST", nargs="?", help="a new .py file, or a folder for it")
    asked = parser.parse_args(arguments)
    if asked.action == "copy":
        print(f"wrote {copy_recipe(asked.name, asked.dest)}")
    else:
        show_rows([row for recipe in _shipped() for row in _listed(recipe)])
    return 0


def _listed(recipe: Shipped) -> list[tuple[str, str]]:
    """Its name, and below it the names of the others in its file."""
    others = [(f"  {recipe.name}:{name}", text) for name, text in recipe.others.items()]
    return [(recipe.name, recipe.summary), *others]


def _shipped() -> list[Shipped]:
    from jscale.launch import recipes

    return shipped(recipes)


def copy_recipe(name: str, dest: str | None) -> Path:
    """Write the source of the shipped recipe `name` to `dest` and return where it went.

    Raises:
      ConfigError: there is no such recipe, or `dest` exists, is no .py file, or cannot be written.
    """
    name = name.partition(":")[0]  # the file of mixtral_8x7b:finetune is that of mixtral_8x7b
    known = {recipe.name: recipe.source for recipe in _shipped()}
    if name not in known:
        raise ConfigError(f"there is no recipe {name!r}; {did_you_mean(name, known)}")
    path = Path(dest or f"{name}.py").expanduser()
    path = path / f"{name}.py" if path.is_dir() else path
    if path.suffix != ".py":
        raise ConfigError(f"{path} must end in .py, or be a folder")
    dest = str(path) if path.is_absolute() or len(path.parts) > 1 else f"./{path}"
    text = HEADER.format(name=name, dest=dest) + known[name].read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists already, and is left as it is") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return path
