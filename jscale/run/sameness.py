"""Processes of one job must run the same program: else they compute wrong numbers, and no error."""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jscale.checkpoint.agreement import first_decides, said
from jscale.config.data import to_data
from jscale.config.diff import diff
from jscale.config.show import text
from jscale.config.tree import nodes
from jscale.errors import ConfigError
from jscale.mesh.devices import devices
from jscale.recipe import Recipe
from jscale.run.environment import versions

ROOT = Path(__file__).parents[1]


def check_same_program(recipe: Recipe) -> None:
    """Check that all processes have the same recipe, the same code and the same packages.

    Raises:
        ConfigError: on every process, if one has not; it is named with what is different.
    """
    devices()  # starts the backend safely
    if jax.process_count() > 1:
        recipes = json.loads(json.dumps(to_data(recipe)))
        check_same({"recipe": recipes, "version of": versions(), "code of": code(recipe)})


def check_same(here: Mapping[str, Any]) -> None:
    """Check that plain JSON data are the same on all processes. All processes must call it.

    Raises:
        ConfigError: on every process, if one has other data than the first.
    """
    if jax.process_count() == 1:
        return
    first = first_decides(lambda: here)
    complaints = said(_complaint(first, here))
    if complaints:
        process, complaint = next(iter(complaints.items()))
        more = f" (so do {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        raise ConfigError(
            f"process {process}{more} differs from process 0: {complaint}; start all processes of a"
            " job with the same command, code, packages and data"
        )


def _complaint(first: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    for what, data in here.items():
        changes = diff(first[what], data)
        if changes:
            shown = [f"{what} {c.path} is {text(c.right)}, not {text(c.left)}" for c in changes[:3]]
            return f"on {socket.gethostname()}, {', '.join(shown)}"
    return None


def code(recipe: Recipe) -> dict[str, str]:
    """Digests: of jscale's source, and of each user's file that defines parts of the recipe."""
    folders = os.walk(ROOT, followlinks=True)  # in a checkout, some rooms are links
    ours = [Path(at, name) for at, _, names in folders for name in names if name.endswith(".py")]
    return {"jscale": digest(sorted(ours))} | {
        name: digest([Path(str(module.__file__))])
        for name, module in sorted(_modules(recipe).items())
    }


def digest(files: Iterable[Path]) -> str:
    """Of the contents, not of the places."""
    found = hashlib.blake2b(digest_size=8)
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()


def _modules(recipe: Recipe) -> dict[str, ModuleType]:
    """The modules outside of jscale in which types of the recipe's values are defined."""
    names = {type(value).__module__ for _, value in nodes(recipe)}
    found = {name: sys.modules.get(name) for name in names if name.split(".")[0] != "jscale"}
    return {name: m for name, m in found.items() if m and getattr(m, "__file__", None)}
