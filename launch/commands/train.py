"""`jscale train RECIPE [field=value ...]`: train, or go on training."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jscale.errors import ConfigError, PeerError
from jscale.launch.commands.arguments import Resolved, recipe_from, recipe_parser
from jscale.launch.join import (
    LIFELINE,
    die_with_launcher,
    hear_signals,
    join,
    leave,
    place_in,
)
from jscale.launch.quiet import quiet


def main(arguments: Sequence[str]) -> int:
    """Train a recipe to its end in its run folder; Ctrl-C saves and stops."""
    options = parser().parse_intermixed_args(list(arguments))
    die_with_launcher(os.environ)
    place = place_in(os.environ)
    quiet()
    from jscale.mesh import simulate
    from jscale.run.peers import is_lost_peer
    from jscale.signals import Interrupted, Signals, Stopped

    hear_signals()
    resolved = recipe_from(options)
    signals = Signals()
    with signals:
        try:
            with signals.at_once():
                if options.devices is not None:
                    simulate(check_devices(options.devices))
                if options.dry_run:
                    return rehearse(resolved.value)
                if place or options.distributed:
                    join(place)
                folder = folder_of(resolved, options.run)
                return train(resolved, folder)
        except (Stopped, Interrupted) as stop:
            print(stop, flush=True)
            if isinstance(stop, Stopped) and stop.step is not None:  # as all processes do
                leave()
            return stop.status
        except Exception as error:
            if not is_lost_peer(error):
                raise
            if LIFELINE in os.environ:  # the launcher says it, for it knows which one and why
                return PeerError.status
            raise PeerError(
                "another process of this job has ended, and this one cannot go on without it: see"
                " what that one says; start the job again to go on from the last saved step"
            ) from error


def parser() -> argparse.ArgumentParser:
    parser = recipe_parser("train", "Train a recipe, or go on where its run was stopped.")
    parser.add_argument("--run", metavar="FOLDER", help="the run's folder (runs/<recipe's name>)")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="simulate N devices on the processor"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the job that Slurm, Open MPI, Kubernetes or a TPU pod started this process for",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, compile the step, train nothing"
    )
    return parser


def check_devices(count: int, option: str = "--devices") -> int:
    if not 1 <= count <= 1024:
        raise ConfigError(f"{option} takes a number from 1 to 1024, not {count}")
    return count


def folder_of(resolved: Resolved, asked: str | None) -> Path:
    """The run's folder: the one asked for, the one that the recipe was read from, or a default."""
    if asked:
        return Path(asked)
    source = resolved.loaded.source
    if resolved.loaded.module is None and source.name == "recipe.json":
        return source.parent
    return Path("runs") / resolved.value.name


def rehearse(recipe: Any) -> int:
    """Say where everything goes, compile the step on the devices at hand, and write nothing."""
    from jscale.checkpoint.sizes import readable
    from jscale.data import TokenizerFile
    from jscale.explain import compile_step
    from jscale.launch.commands.explain import describe
    from jscale.recipe import check_vocabulary

    for source in getattr(recipe.data, "parts", ()):
        source.size()  # raises for a file that is not there
    if isinstance(recipe.data.tokenizer, TokenizerFile):
        check_vocabulary(recipe.model, recipe.data.tokenizer.load().vocab)
    describe(recipe)
    compiled = compile_step(recipe)
    memory = f"{readable(compiled.memory)} on each device" if compiled.memory else "memory unknown"
    print(f"the train step compiles in {compiled.seconds:.1f} s: {memory}, activations included")
    return 0


def shipped_name(resolved: Resolved) -> str | None:
    from jscale.launch import recipes

    source = resolved.loaded.source
    return source.stem if source.parent in map(Path, recipes.__path__) else None


def train(resolved: Resolved, folder: Path) -> int:
    """The run, with its display; the exit status."""
    from jscale.run.programs import keep_programs

    keep_programs()
    from jscale.launch.closing import say_goodbye
    from jscale.launch.origin import record_base
    from jscale.metrics.progress import Progress
    from jscale.run.trainer import Trainer

    recipe, shipped = resolved.value, shipped_name(resolved)
    with Progress(recipe.steps, every=recipe.logging.every) as progress:
        with Trainer(recipe, folder, progress=progress) as trainer:
            record_base(resolved, folder)
            begun = trainer.step
            trainer.fit()
            trained = trainer.step - begun
            say_goodbye(trainer, folder, progress.note, trained=trained, shipped=shipped)
    return 0
