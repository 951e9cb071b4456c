import shutil
from pathlib import Path

import pytest
from run.tiny import tiny, train


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text and a run of ten steps. Not to be changed."""
    folder = tmp_path_factory.mktemp("ended")
    train(tiny(folder, steps=10), folder / "run")
    return folder


@pytest.fixture
def again(ended: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    return tmp_path
