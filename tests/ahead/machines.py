"""What the tests of compiling ahead share: recipes as a user changes them, and the compilers."""

import os

import pytest

from jscale.errors import ConfigError
from jscale.launch.commands.arguments import resolve
from jscale.mesh import oracle
from jscale.mesh.machines import Gpu
from jscale.mesh.target import target
from jscale.recipe import Recipe


def recipe(*overrides: str, name: str = "tiny") -> Recipe:
    """A shipped recipe with some values changed, as the command line does it."""
    return resolve(name, overrides).value


def need(machine: str) -> None:
    """Skip the test where the compiler for a machine is not installed; in CI that is a failure."""
    chip = target(machine).chip
    if chip is None:
        return
    try:
        oracle.check_plugin() if isinstance(chip.build, Gpu) else oracle.check_libtpu()
    except ConfigError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
