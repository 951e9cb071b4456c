"""`jscale export RUN FOLDER`: a trained model as safetensors, recipe and tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    """Write the newest (or the given) checkpoint's model into a new folder."""
    parser = Parser(prog="jscale export", description="Write a trained model as plain files.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder to write")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (as the run keeps them)")
    parser.add_argument("--step", type=int, help="a checkpoint's step (the newest)")
    parser.add_argument(
        "--import", dest="imports", metavar="FILE", action="append", default=[],
        help="a Python file whose types the run's recipe uses (it is executed)",
    )  # fmt: skip
    options = parser.parse_args(list(arguments))
    from jscale.config.load import load_file
    from jscale.export import export
    from jscale.restored import open_run

    allow = [load_file(Path(file)) for file in options.imports]
    run = open_run(Path(options.run), options.step, allow)
    for path in export(run, Path(options.folder), options.dtype):
        print(path)
    return 0
