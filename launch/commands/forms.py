"""The formats of weights that `jscale import` reads and `jscale export --as` writes.

A format is a module with `table(config)`. One may have more: `files(config, told)`, texts that
stand beside the weights, and `config_of(folder)`, the config of ours that a release describes.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.config.load import load_file
from jscale.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from jscale.formats.table import Table

FORMS = {
    "huggingface": "jscale.formats.huggingface",
    "torchscale": "jscale.formats.torchscale",
}
ANY = f"{', '.join(sorted(FORMS))}, or a Python file with a table(config)"


def form_of(name: str) -> Any:
    """The format of this name, or that a Python file defines.

    Raises:
        ConfigError: there is no such format, or the file has no table.
    """
    if name in FORMS:
        return importlib.import_module(FORMS[name])
    if not name.endswith(".py"):
        hint = did_you_mean(name, FORMS)
        raise ConfigError(f"no format {name!r}; {hint}, or the name of a Python file")
    module = load_file(Path(name))
    if not callable(getattr(module, "table", None)):
        raise ConfigError(f"{name} has no function table(config): what weights are called")
    return module


def table_of(form: str, config: Any) -> "Table":
    """The table between a model of this config and a format.

    Raises:
        ConfigError: the format has no such model.
    """
    return form_of(form).table(config)


def files_of(form: str, config: Any, told: dict[str, Any]) -> dict[str, str]:
    """What stands beside the weights, by file name; `told` is what only a run knows."""
    files = getattr(form_of(form), "files", None)
    return files(config, told) if files else {}


def home_of(weights: Path) -> Path:
    """The folder of a release, of which weights are a file or the whole."""
    return weights if weights.is_dir() else weights.parent


def check_release(form: str, config: Any, weights: Path) -> None:
    """See that a recipe's model is the one that a release describes, where it describes one.

    Raises:
        ConfigError: it is another, or has other sizes.
    """
    describe = getattr(form_of(form), "config_of", None)
    home = home_of(weights)
    if describe is None or (home != weights and not (home / "config.json").is_file()):
        return
    theirs = describe(home)
    if type(theirs) is not type(config):
        raise ConfigError(
            f"{weights} is a {type(theirs).__name__}, and the recipe's model a"
            f" {type(config).__name__}: set model={form}.config_of({str(weights)!r}), from"
            f" jscale.formats import {form}"
        )
    mine, its = _sizes(config), _sizes(theirs)
    other = [f"{name}={its[name]} (not {mine[name]})" for name in mine if mine[name] != its[name]]
    if other:
        raise ConfigError(f"{weights} has other sizes than the recipe's model: {', '.join(other)}")


def _sizes(config: Any) -> dict[str, Any]:
    """The fields that a release must have too.

    How a network is rematerialised, what training drops and how vectors are pooled is the recipe's
    affair; the size of a head of attention may be told or follow.
    """
    own = {"remat": None, "drop": None, "pooling": None}
    follows = {"head": None, "head_size": config.head_size} if hasattr(config, "head_size") else {}
    parts = {name: _sizes(part) for name, part in vars(config).items() if hasattr(part, "remat")}
    return {**vars(config), **own, **follows, **parts}
