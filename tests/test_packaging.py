"""What is built from the source holds all of it, as real files, and works; importing is light."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = "orbax grain tensorboardX datasets pyarrow tensorstore wandb".split()  # imported where used


def build(source: Path, folder: Path, *targets: str) -> list[Path]:
    """Builds from a source folder, as pip would, and returns what came out."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    for target in targets:
        command += ["--target", target]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(folder.iterdir())


def python(code: str, *path: Path) -> str:
    """Runs code in a fresh Python that sees `path` first, and returns what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel, and the source archive unpacked."""
    folder = tmp_path_factory.mktemp("built")
    wheel, archive = build(ROOT, folder, "wheel", "sdist")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return wheel, folder / archive.name.removesuffix(".tar.gz")


def sources() -> set[str]:
    """Every file of code below `jscale/`, its links followed."""
    found = set()
    for folder, _, names in os.walk(ROOT / "jscale", followlinks=True):
        paths = [(Path(folder) / name).relative_to(ROOT) for name in names]
        kinds = (".py", ".css", ".js", ".json")  # the latter three are data and parts of pages
        found |= {str(path) for path in paths if path.suffix in kinds or path.name == "py.typed"}
    return found


def test_the_wheel_holds_the_code_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        assert names == sources()
        assert file.read("jscale/models/model.py") == (ROOT / "models/model.py").read_bytes()


def test_the_source_archive_builds_the_same_wheel(built, tmp_path):
    wheel, unpacked = built
    assert (unpacked / "jscale/models/model.py").is_file()
    assert (unpacked / "LICENSE").is_file() and (unpacked / "README.md").is_file()
    again = build(unpacked, tmp_path, "wheel")[0]
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {
            i.filename: i.CRC for i in second.infolist()
        }


def test_the_unpacked_wheel_finds_its_rooms_and_recipes(built, tmp_path):
    with zipfile.ZipFile(built[0]) as file:
        file.extractall(tmp_path)
    code = (
        "import jscale.mesh, jscale.models\nfrom jscale.launch.cli import main\n"
        "print(jscale.__file__, jscale.mesh.__file__, jscale.models.__file__, sep='\\n')\n"
        "raise SystemExit(main(['config', 'quickstart']))"
    )
    *files, rest = python(code, tmp_path).split("\n", 3)
    assert all(file.startswith(f"{tmp_path}/jscale/") for file in files)
    assert "model.layers = " in rest


def test_the_bare_import_loads_nothing_heavy():
    code = "import sys\nbefore = set(sys.modules)\nimport jscale\nprint(*set(sys.modules) - before)"
    loaded = {name.partition(".")[0] for name in python(code, ROOT).split()}
    assert "jscale" in loaded
    assert not loaded & {"jax", "jaxlib", "numpy", "flax", "optax", "tokenizers", "rich", *HEAVY}


def test_all_that_the_users_door_offers_starts_no_backend_and_loads_nothing_heavy():
    code = (
        "import sys, jscale\nfor name in dir(jscale): getattr(jscale, name)\n"
        "from jscale.mesh.compat import started\nprint(started(), *sys.modules)"
    )
    answer, *loaded = python(code, ROOT).split()
    assert answer == "False" and "jscale.run.trainer" in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
