"""`jscale launch local --processes N RECIPE [field=value ...]`: train in several processes."""

import argparse
from collections.abc import Sequence

from jscale.errors import ConfigError, did_you_mean
from jscale.launch.commands.arguments import recipe_from, recipe_parser
from jscale.launch.commands.train import check_devices, folder_of
from jscale.launch.quiet import quiet

PLACES = {"local": "processes of this machine, on its processor"}

HELP = """usage: jscale launch PLACE [...]

Train one recipe in several processes at once.

{places}

  jscale launch local --help    what it takes
"""


def main(arguments: Sequence[str]) -> int:
    """Start the processes of a job and watch over them; the job's exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = [f"  {name:<10} {what}" for name, what in PLACES.items()]
        print(HELP.format(places="\n".join(rows)), end="")
        return 0
    place, *rest = arguments
    if place not in PLACES:
        hint = did_you_mean(place, PLACES)
        raise ConfigError(f"there is no place {place!r} to launch at; {hint}")
    return local(rest)


def local(arguments: Sequence[str]) -> int:
    """`jscale launch local`: processes of this machine, each with simulated devices."""
    options = local_parser().parse_intermixed_args(list(arguments))
    check_processes(options.processes)
    check_devices(options.devices_per_process, "--devices-per-process")
    quiet()
    resolved = recipe_from(options)  # a mistake is told once, before anything is started
    from jscale.launch.local import Job, reserved_port, run

    folder = folder_of(resolved, options.run)
    words = ["train", options.recipe, *options.overrides, "--run", str(folder)]
    words += [word for file in options.imports for word in ("--import", file)]
    words += ["--devices", str(options.devices_per_process)]
    job = Job(tuple(words), options.processes, options.devices_per_process, folder)
    if options.print:
        with reserved_port() as port:
            print("\n".join(job.shown(port)))
        return 0
    return run(job)


def local_parser() -> argparse.ArgumentParser:
    parser = recipe_parser("launch local", "Train a recipe in several processes of this machine.")
    parser.add_argument(
        "--processes", type=int, metavar="N", required=True, help="how many processes"
    )
    parser.add_argument(
        "--devices-per-process",
        type=int,
        metavar="K",
        default=2,
        help="devices that each of them simulates on the processor (2)",
    )
    parser.add_argument("--run", metavar="FOLDER", help="the run's folder (runs/<recipe's name>)")
    parser.add_argument("--print", action="store_true", help="show the commands, and start nothing")
    return parser


def check_processes(count: int) -> None:
    if not 1 <= count <= 256:
        raise ConfigError(f"--processes takes a number from 1 to 256, not {count}")
