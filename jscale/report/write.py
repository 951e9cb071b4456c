"""From folders to a file."""

from collections.abc import Sequence
from pathlib import Path

from jscale.errors import CheckpointError, ConfigError
from jscale.report.comparison import comparison_page
from jscale.report.read import read_run
from jscale.report.single import single_page


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report on a run, or the comparison of several; where it was written.

    Without `out` it is `report.html` in the run's folder, or here for several runs.

    Raises:
        ConfigError: no run is named, or one is named twice.
        CheckpointError: a folder is not that of a run, nothing is logged in it yet, or the page
            cannot be written.
        DataError: a line of a run's metrics cannot be read.
    """
    real = [Path(folder).resolve() for folder in folders]
    if not real:
        raise ConfigError("a report needs the folder of a run")
    twice = next((f for f, r in zip(folders, real, strict=True) if real.count(r) > 1), None)
    if twice is not None:
        raise ConfigError(f"the run {twice} is named twice")
    accounts = [read_run(folder) for folder in folders]
    alone = len(accounts) == 1
    text = single_page(accounts[0]) if alone else comparison_page(accounts)
    return write_page(
        text, out or (accounts[0].path / "report.html" if alone else Path("comparison.html"))
    )


def write_page(text: str, path: Path) -> Path:
    """Write a page; a reader sees the old one or the new one whole.

    Raises:
        CheckpointError: it cannot be written there.
    """
    from jscale.run.runfolder import atomic_write

    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name a file for the page")
    atomic_write(path, text)
    return path
