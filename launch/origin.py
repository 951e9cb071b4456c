"""base.json: the recipe that a run was made from, before the command line changed it."""

import json
from pathlib import Path

import jax

from jscale.config.data import to_data
from jscale.config.tree import shown
from jscale.launch.commands.arguments import Resolved
from jscale.run.runfolder import atomic_write


def record_base(resolved: Resolved, folder: Path) -> None:
    """Write the recipe without the overrides of the command line beside the one with them.

    A run that goes on from its own folder keeps what is there. Only the first process writes.

    Raises:
        CheckpointError: it cannot be written.
    """
    loaded = resolved.loaded
    if loaded.module is None or jax.process_index():
        return
    name = (
        shown(loaded.source)
        if loaded.function == "recipe"
        else f"{loaded.source}:{loaded.function}"
    )
    about = {"name": name, "overrides": dict(resolved.overrides), "recipe": to_data(loaded.value)}
    atomic_write(folder / "base.json", json.dumps(about, indent=1) + "\n")
