"""`jscale train RECIPE [field=value ...]`: train, or go on training."""

from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import recipe_from, recipe_parser


def main(arguments: Sequence[str]) -> int:
    """Train a recipe to its end in its run folder; Ctrl-C saves and stops."""
    parser = recipe_parser("train", "Train a recipe, or go on where its run was stopped.")
    parser.add_argument("--run", metavar="FOLDER", help="the run's folder (runs/<recipe's name>)")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="simulate N devices on the processor"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, compile the step, train nothing"
    )
    options = parser.parse_intermixed_args(list(arguments))
    recipe = recipe_from(options).value
    from jscale.mesh import simulate

    if options.devices is not None:
        simulate(options.devices)
    if options.dry_run:
        from jscale.launch.commands.explain import describe

        return describe(recipe)
    return train(recipe, Path(options.run) if options.run else Path("runs") / recipe.name)


def train(recipe, folder: Path) -> int:
    """The run, with its display; the exit status."""
    from jscale.programs import keep_programs

    keep_programs()
    from jscale.launch.closing import say_goodbye
    from jscale.metrics.progress import Progress
    from jscale.signals import Stopped
    from jscale.trainer import Trainer

    with Progress(recipe.steps, every=recipe.logging.every) as progress:
        with Trainer(recipe, folder, progress=progress) as trainer:
            begun = trainer.step
            try:
                trainer.fit()
            except Stopped as stopped:
                progress.note(f"{stopped}")
                return stopped.status
            say_goodbye(trainer, folder, progress.note, trained=trainer.step - begun)
    return 0
