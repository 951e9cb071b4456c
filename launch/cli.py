"""The `jscale` command: finds the command asked for and turns what goes wrong into a status."""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from jscale.errors import UserError, did_you_mean
from jscale.launch.interrupts import signals_end, told
from jscale.launch.join import end
from jscale.signals import Terminated, status

USAGE = 64
INTERNAL = 70
PIPE_CLOSED = 141  # as a shell reports a program that SIGPIPE ended


@dataclass(frozen=True)
class Command:
    """A command: the module whose `main(arguments)` it is, and one line of help."""

    module: str
    help: str


COMMANDS = {
    "train": Command("jscale.launch.commands.train", "train a recipe, or go on with a run"),
    "launch": Command("jscale.launch.commands.launch", "train in several processes"),
    "config": Command("jscale.launch.commands.config", "show a recipe: every value, and why"),
    "recipes": Command("jscale.launch.commands.recipes", "list the recipes, or copy one to edit"),
    "models": Command("jscale.launch.commands.models", "list the architectures, or show one"),
    "profile": Command("jscale.launch.commands.profile", "show where the time of a step goes"),
    "bench": Command("jscale.launch.commands.bench", "time each kernel against all others"),
    "explain": Command("jscale.launch.commands.explain", "show where every parameter goes"),
    "compile": Command(
        "jscale.launch.commands.compile", "compile for a machine that is not here: does it fit?"
    ),
    "moe": Command("jscale.launch.commands.moe", "look at mixtures of experts, in a run or before"),
    "ckpt": Command("jscale.launch.commands.ckpt", "list, inspect and verify checkpoints"),
    "generate": Command("jscale.launch.commands.generate", "continue text with a trained model"),
    "report": Command("jscale.launch.commands.report", "draw a run, or several, as a page"),
    "import": Command(
        "jscale.launch.commands.importing", "start a run from another framework's weights"
    ),
    "upcycle": Command(
        "jscale.launch.commands.upcycle", "start a run with experts from a dense network"
    ),
    "export": Command("jscale.launch.commands.export", "write a trained model as plain files"),
    "evaluate": Command("jscale.launch.commands.evaluate", "measure a trained model"),
}

HELP = """usage: jscale COMMAND [...]

Train large models on meshes of accelerators.

{commands}

  jscale train quickstart                    train a shipped recipe
  jscale train my.py model.layers=4 steps=9  train your own, with two values changed
  jscale COMMAND --help                      what a command takes

options: --version, --help, --debug (show where an error was raised)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 done, 64 a mistake in what was asked, 65 data, 66 checkpoint, 70 a bug of ours, 72 the numbers
    diverged, 73 too little memory on a device, 75 terminated, 130 interrupted; a command may return
    others.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    return end(_guarded(lambda: _dispatch(arguments), debug))


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help(), end="")
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"jscale {_version()}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"there is no command {name!r}; {hint}")
    return importlib.import_module(COMMANDS[name].module).main(rest)


def _help() -> str:
    rows = [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    return HELP.format(commands="\n".join(rows))


def _version() -> str:
    try:
        return metadata.version("jscale")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "(not installed)"


def _guarded(action: Callable[[], int], debug: bool) -> int:
    """`action()`, every way in which it can fail turned into an exit status."""
    try:
        with signals_end():
            done = action()
            sys.stdout.flush()
            return done
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"jscale: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.status
    except SystemExit as exit:  # argparse, after --help
        return exit.code if isinstance(exit.code, int) else USAGE if exit.code else 0
    except KeyboardInterrupt as asked:
        signum = signal.SIGTERM if isinstance(asked, Terminated) else signal.SIGINT
        print(told(signum), file=sys.stderr)
        return status(signum)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception:
        traceback.print_exc()
        print("jscale: this is a bug in jscale: please report the lines above", file=sys.stderr)
        return INTERNAL


if __name__ == "__main__":
    sys.exit(main())
