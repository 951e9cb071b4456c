"""`jscale export RUN FOLDER`: a trained model as safetensors, recipe and tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import run_from, run_parser
from jscale.launch.quiet import quiet


def main(arguments: Sequence[str]) -> int:
    """Write the newest (or the given) checkpoint's model into a new folder."""
    parser = run_parser("export", "Write a trained model as plain files.")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder to write")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (as the run keeps them)")
    options = parser.parse_args(list(arguments))
    quiet()
    from jscale.export import export

    for path in export(run_from(options), Path(options.folder), options.dtype):
        print(path)
    return 0
