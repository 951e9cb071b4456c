"""`jscale export RUN FOLDER`: a trained model as safetensors, recipe and tokenizer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.errors import ConfigError
from jscale.launch.commands.arguments import run_from, run_parser
from jscale.launch.commands.forms import ANY, files_of, table_of
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.run.restored import Run


def main(arguments: Sequence[str]) -> int:
    """Write the newest (or the given) checkpoint's model into a new folder."""
    parser = run_parser("export", "Write a trained model as plain files.")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder to write")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (as the run keeps them)")
    parser.add_argument(
        "--as", dest="form", metavar="FORMAT", help=f"with the names of another framework: {ANY}"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="open what was written there, and compare what both say",
    )
    options = parser.parse_args(list(arguments))
    if options.verify and options.form != "huggingface":
        raise ConfigError("--verify opens an export in transformers: add --as huggingface")
    quiet()
    from jscale.export import export

    run, folder = run_from(options), Path(options.folder)
    for path in export(run, folder, options.dtype, **named(run, options)):
        print(path)
    if options.verify:
        from jscale.formats.huggingface.verify import verify

        what, apart = verify(run.model, run.params, run.task.layout, folder)
        print(f"transformers opens {folder} and says the same: {what} within {apart:.1g}")
    return 0


def named(run: "Run", options: argparse.Namespace) -> dict[str, Any]:
    """What of an export another framework's names decide."""
    form, config = options.form, run.recipe.model
    if form is None:
        return {}
    told = {
        "bos_token_id": run.tokenizer.bos,
        "eos_token_id": run.tokenizer.eos,
        "pad_token_id": run.tokenizer.pad,
        "dtype": options.dtype or run.recipe.precision.store,
    }
    return {"table": table_of(form, config), "beside": files_of(form, config, told)}
