"""`jscale moe doctor RECIPE [--data FILE]`: how a recipe's model routes data, before training."""

import argparse
import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jscale.errors import ConfigError, DataError
from jscale.launch.commands.arguments import Resolved, recipe_from, recipe_parser
from jscale.launch.commands.moe import data_of, show
from jscale.launch.commands.progress import progress

if TYPE_CHECKING:
    from jscale.data import Source
    from jscale.experts.doctor import Seen
    from jscale.experts.verdict import Verdict
    from jscale.recipe import Recipe

BATCHES = 8
JSONL, PARQUET = (".jsonl", ".jsonl.gz", ".jsonl.zst"), (".parquet",)


def main(arguments: Sequence[str]) -> int:
    """Print how the recipe's model routes the first batches of the data."""
    options = parser().parse_intermixed_args(list(arguments))
    from jscale.launch.commands.train import check_devices
    from jscale.mesh import simulate

    if options.devices is not None:
        simulate(check_devices(options.devices))
    resolved = recipe_from(options)
    recipe, folder = prepared(resolved, options)
    seen, found = examined(resolved, recipe, folder, options)
    sentences = words_of(seen)
    if options.json:
        told = {"recipe": recipe.name, "batches": seen.batches, **data_of(found)}
        print(json.dumps({**told, "notes": sentences}, indent=2))
        return 0
    print(f"{recipe.name}: {begun(folder)}, on {seen.batches} batches of {of_data(options)}\n")
    show(found, sentences)
    return 0


def parser() -> argparse.ArgumentParser:
    out = recipe_parser(
        "moe doctor",
        "How evenly a recipe's model uses its experts on data, before it is trained on them."
        " Nothing is learned and nothing is written. The weights are those that training would"
        " begin with; of a run's folder, those of its newest checkpoint.",
    )
    out.add_argument(
        "--data",
        metavar="FILE",
        nargs="+",
        help="files of text instead of the recipe's: .jsonl (gz, zst), .parquet, any other is text",
    )
    out.add_argument(
        "--batches", type=int, default=BATCHES, metavar="N", help=f"batches to look at ({BATCHES})"
    )
    out.add_argument("--devices", type=int, metavar="N", help="simulate N devices")
    out.add_argument("--json", action="store_true", help="print JSON")
    return out


def prepared(resolved: Resolved, options: argparse.Namespace) -> "tuple[Recipe, Path | None]":
    """The recipe on the devices at hand and on the data asked for, and the folder of its weights.

    Raises:
        ConfigError: its data have no source that files could replace.
    """
    from jscale.run.restored import fitting

    notes: list[str] = []
    recipe, source = fitting(resolved.value, notes), resolved.loaded.source
    folder = source.parent if source.name == "recipe.json" else None
    if folder is not None and not (folder / "checkpoints").is_dir():
        folder = None
    if folder is not None and (folder / "tokenizer.json").is_file():
        recipe = with_tokenizer(recipe, folder)
    return (with_data(recipe, options.data) if options.data else recipe), folder


def with_tokenizer(recipe: "Recipe", folder: Path) -> "Recipe":
    """With the tokens that a run has, whatever the data."""
    from jscale.data import TextData, TokenizerFile

    if not isinstance(recipe.data, TextData):
        return recipe
    return replace(
        recipe, data=replace(recipe.data, tokenizer=TokenizerFile(str(folder.absolute())))
    )


def with_data(recipe: "Recipe", files: Sequence[str]) -> "Recipe":
    """With these files as the source of its text, of which nothing is held out.

    Raises:
        ConfigError: the recipe's data are not of text.
    """
    from jscale.data import TextData

    if not isinstance(recipe.data, TextData):
        kind = type(recipe.data).__name__
        raise ConfigError(
            f"--data replaces the source of text, and the recipe's data are {kind}: change it as"
            " any field, by data.source=…"
        )
    return replace(recipe, data=replace(recipe.data, source=source_of(files), heldout=0.0))


def source_of(files: Sequence[str]) -> "Source":
    """What reads these files.

    Raises:
        ConfigError: they are of several kinds.
        DataError: one is not there.
    """
    from jscale.data import JsonLines, Parquet, TextFiles

    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise DataError(f"--data: there is no file {missing[0]}")
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1:
        raise ConfigError("--data: all files must be of one kind: lines of JSON, Parquet, or text")
    (kind,) = kinds
    paths = tuple(files)
    return {"jsonl": JsonLines, "parquet": Parquet, "text": TextFiles}[kind](paths)


def kind_of(file: str) -> str:
    return "jsonl" if file.endswith(JSONL) else "parquet" if file.endswith(PARQUET) else "text"


def examined(
    resolved: Resolved, recipe: "Recipe", folder: Path | None, options: argparse.Namespace
) -> "tuple[Seen, tuple[Verdict, ...]]":
    """What is seen in the batches, and the verdicts.

    Raises:
        ConfigError: the model has no experts.
        DeviceMemoryError: it is too large for the devices at hand.
    """
    from jscale.config.data import to_data
    from jscale.experts.doctor import check_experts, check_memory, initial, look
    from jscale.experts.setting import settings_of
    from jscale.experts.sharing import sharing_of
    from jscale.experts.verdict import verdicts_at_once
    from jscale.explain import as_data, explain_task
    from jscale.mesh import MeshShape
    from jscale.prepare import Choice, real_mesh, task_of
    from jscale.run.restored import started_in
    from jscale.run.session import open_corpus

    mesh, reason = real_mesh(recipe)
    task = task_of(recipe, mesh)
    check_experts(task)
    check_memory(task, hint_of(resolved))
    where = started_in(folder) if folder is not None and not options.data else Path.cwd()
    with contextlib.chdir(where):
        corpus = open_corpus(recipe, None)
    params = initial(recipe, task, folder)
    with progress("batches") as tell:
        seen = look(recipe, task, params, corpus, options.batches, tell)
    layout = as_data(explain_task(task, Choice(MeshShape(**mesh.shape), reason)))
    settings = settings_of(to_data(recipe))
    return seen, verdicts_at_once(seen.entries, settings, sharing_of(layout))


def hint_of(resolved: Resolved) -> str:
    """What to look at where a recipe is too large for this machine."""
    module, name = resolved.loaded.module, resolved.loaded.source.stem
    if module is not None and callable(vars(module).get("twin")):
        return f"look at its small twin, {name}:twin, or do this on the machine that it is for"
    return "do this on the machine that it is for, or look at fewer layers, by model.layers=2"


def begun(folder: Path | None) -> str:
    return "its first weights" if folder is None else f"the newest weights of {folder}"


def of_data(options: argparse.Namespace) -> str:
    return ", ".join(options.data) if options.data else "the recipe's data"


def words_of(seen: "Seen") -> list[str]:
    """What would be dropped, and what room the loads need."""
    from jscale.experts.doctor import rooms

    layers = [layer for entry in seen.entries for layer in entry.layers]
    chosen = sum(float(layer.chosen.sum()) for layer in layers)
    dropped = sum(layer.dropped for layer in layers)
    out = [f"dropped by experts that are full: {dropped / chosen:.2%} of choices"] if chosen else []
    if seen.bounded:
        again = f"{seen.replayed} of {seen.batches} batches"
        out.append(f"no room on a device: {seen.lost:,.0f} choices; {again} would be done again")
    needed = ", ".join(f"{room:.2f} on {n} devices" for n, room in rooms(seen.entries).items())
    if needed:
        out.append(f"dispatch.room that the worst layer of a microbatch needs: {needed}")
    return out
