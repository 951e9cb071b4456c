"""A run that starts from weights which were trained elsewhere."""

from pathlib import Path

from jscale.errors import ConfigError
from jscale.formats.stream import Progress, Release, quietly, stream
from jscale.formats.table import Table
from jscale.prepare import real_mesh, task_of
from jscale.recipe import Recipe
from jscale.run.session import is_new
from jscale.run.trainer import Trainer


def adopt(
    recipe: Recipe, folder: Path, table: Table, release: Release, progress: Progress = quietly
) -> None:
    """Make the folder of a run whose step 0 has a release's weights, as a table reads them.

    Everything else of step 0 (optimizer, randomness) is as the recipe would begin it.

    Raises:
        ConfigError: the folder is there already.
        CheckpointError: the weights do not fit the recipe's model.
        UserError: the recipe or its data cannot be used.
    """
    if not is_new(folder):
        raise ConfigError(f"{folder} is there already; import into a new run with --run")
    task = task_of(recipe, real_mesh(recipe)[0])
    shapes = task.model.shapes
    where = task.layout.weight_shardings(shapes, task.model.axes)
    params = stream(table, release, shapes, where, progress)
    with Trainer(recipe, folder) as trainer:
        trainer.start_from(params)
