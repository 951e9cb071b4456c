"""Whether a run may go on under a recipe that is not quite the one it was started with."""

import json
from typing import Any

from jscale.checkpoint.agreement import first_decides
from jscale.config.data import to_data, write
from jscale.config.diff import Difference, diff
from jscale.config.show import text
from jscale.data.corpus import Corpus
from jscale.errors import ConfigError
from jscale.recipe import Recipe
from jscale.runfolder import RunFolder

# What may change between one start of a run and the next without changing what is being trained.
FREE = (
    "steps",
    "mesh",
    "rules",
    "guard",
    "checkpoints",
    "evaluation",
    "samples",
    "logging",
    "name",
)
# Knobs of reading, not of what is read.
FREE_FIELDS = ("data.cache", "data.workers")


def is_free(difference: Difference) -> bool:
    return difference.path.split(".")[0] in FREE or difference.path in FREE_FIELDS


def agree(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Write the recipe into a new run's folder, or check it against the one that is there.

    Returns what has changed and may, as sentences.

    Raises:
        ConfigError: the folder holds a run of another recipe; the differences are named.
    """
    return first_decides(lambda: _agree(folder, recipe))


def _agree(folder: RunFolder, recipe: Recipe) -> list[str]:
    if not folder.recipe.exists():
        write(folder.recipe, recipe)
        return []
    # As data, so that a user's own types need not be imported to be compared.
    old, new = json.loads(folder.recipe.read_text()), to_data(recipe)
    if old == new:
        return []
    changes = diff(old, new)
    bound = [c for c in changes if not is_free(c)]
    if bound:
        shown = "; ".join(f"{c.path}: {text(c.left)} -> {text(c.right)}" for c in bound[:6])
        more = f" and {len(bound) - 6} more" if len(bound) > 6 else ""
        raise ConfigError(
            f"{folder.path} holds a run of another recipe ({shown}{more}); give this one a folder"
            " of its own with --run, or undo the change"
        )
    write(folder.recipe, recipe)
    return [f"changed since the last start: {c.path}" for c in changes]


def check_data(note: Any, corpus: Corpus) -> None:
    """Check that the data are those that a checkpoint was trained on.

    Raises:
        ConfigError: they are not.
    """
    was = note.get("data")
    if was != corpus.train.fingerprint:
        raise ConfigError(
            "the training data are not those that this run was started with (files, tokenizer or"
            f" packing have changed: fingerprint {was} became {corpus.train.fingerprint}); restore"
            " them, or start a new run with --run"
        )
