from collections.abc import Iterator
from pathlib import Path

import pytest
from report.browser import Browser, browser
from run.tiny import tiny, train

from jscale.mesh import MeshShape


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `one` of which was stopped and went on. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    mesh = MeshShape(data=2, fsdp=4)
    train(tiny(folder, steps=6, mesh=mesh), folder / "one")
    train(tiny(folder, steps=12, mesh=mesh), folder / "one")
    train(tiny(folder, steps=8, mesh=mesh, seed=1, name="other"), folder / "two")
    return folder


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
