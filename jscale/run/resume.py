"""Whether a run may go on under a recipe that is not quite the one it was started with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jscale.checkpoint import steps
from jscale.checkpoint.agreement import first_decides
from jscale.config.data import to_data, with_defaults
from jscale.config.diff import Difference, diff
from jscale.config.show import text
from jscale.data.dataset import Dataset
from jscale.errors import CheckpointError, ConfigError, DataError
from jscale.recipe import Recipe
from jscale.run.runfolder import RunFolder

# What may change between one start of a run and the next without changing what is being trained.
FREE = set("steps mesh rules guard checkpoints evaluation samples logging name".split())
# Where the text lies and how it is read, not what it is: `check_data` looks at that.
FREE_FIELDS = ("data.cache", "data.workers", "data.source")


def is_free(difference: Difference) -> bool:
    path = difference.path
    return path.split(".")[0] in FREE or any(f"{path}.".startswith(f"{f}.") for f in FREE_FIELDS)


def agree(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Check the recipe against the one in a run's folder. Nothing is written.

    Returns what has changed and may, as sentences. Where no step was trained, all may.

    Raises:
        ConfigError: the folder holds a run of another recipe; the differences are named.
        CheckpointError: its checkpoints or its recipe are damaged.
    """
    return first_decides(lambda: _agree(folder, recipe))


def _agree(folder: RunFolder, recipe: Recipe) -> list[str]:
    if not folder.recipe.exists() or not trained(folder):
        return []
    # As data, so that a user's own types need not be imported to be compared. What was begun before
    # a type had some field was begun with that field's default.
    was = with_defaults(recorded(folder.recipe), recipe)
    changes = diff(was, json.loads(json.dumps(to_data(recipe))))
    bound = [change for change in changes if not is_free(change)]
    if bound:
        more = f" and {len(bound) - 6} more" if len(bound) > 6 else ""
        raise ConfigError(
            f"{folder.path} holds a run of another recipe ({shown(bound[:6])}{more}); give this one"
            " a folder of its own with --run, or undo the change"
        )
    return [f"changed since the last start: {shown(changes)}"] if changes else []


def shown(changes: Sequence[Difference]) -> str:
    return "; ".join(f"{c.path}: {text(c.left)} -> {text(c.right)}" for c in changes)


def recorded(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); remove it to go on under the recipe that is given"
        ) from error


def trained(folder: RunFolder) -> bool:
    """Whether a step was trained here: there are checkpoints, or numbers of one.

    Raises:
        CheckpointError: there were checkpoints, and all have been set aside as damaged.
    """
    if begun(folder.checkpoints):
        return True
    return folder.metrics.exists() and folder.metrics.stat().st_size > 0


def begun(checkpoints: Path) -> bool:
    """Whether there are checkpoints to go on from.

    Raises:
        CheckpointError: there were, and all of them have been set aside as damaged.
    """
    if steps.folders(checkpoints):
        return True
    aside = checkpoints / "damaged"
    if aside.is_dir() and any(aside.iterdir()):
        raise CheckpointError(
            f"{checkpoints} holds no sound checkpoint, only damaged ones (in {aside}); move the run"
            " away, or start anew in another folder with --run"
        )
    return False


def check_data(note: Any, corpus: Dataset) -> None:
    """Check that the data are those that a checkpoint was trained on.

    Raises:
        DataError: they are not.
    """
    was = note.get("data")
    if was != corpus.train.fingerprint:
        raise DataError(
            "the training data are not those that this run was started with (files, tokenizer or"
            f" packing have changed: fingerprint {was} became {corpus.train.fingerprint}); restore"
            " them, or start a new run with --run"
        )
