"""The tests run on versions that `pyproject.toml` admits, and it says each limit only once."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from jscale.run.environment import versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(line) for group in PROJECT["optional-dependencies"].values() for line in group
]


def test_this_python_is_admitted():
    assert SpecifierSet(PROJECT["requires-python"]).contains(platform.python_version())


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_this_version_is_admitted(needed):
    found = metadata.version(needed.name)
    assert needed.specifier.contains(found, prereleases=True), f"{needed.name} {found}"


def test_extras_ask_for_the_same_versions_as_the_package():
    wanted = {needed.name: needed.specifier for needed in NEEDED}
    shared = [extra for extra in EXTRAS if extra.name in wanted]
    assert {extra.name for extra in shared} == {"jax"}
    assert all(extra.specifier == wanted[extra.name] for extra in shared)


def test_what_a_run_notes_holds_the_versions_that_decide_its_numbers():
    noted = versions()
    assert noted["python"] == platform.python_version()
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        assert noted[name] == metadata.version(name)


def test_the_page_of_tested_versions_names_every_admitted_python():
    page = (ROOT / "docs" / "versions.md").read_text()
    prefix = "Programming Language :: Python :: "
    pythons = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert pythons and all(f"| {python}." in page for python in pythons)
