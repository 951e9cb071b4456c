"""`jscale ckpt list|inspect|verify`: looks at the checkpoints of a run and changes nothing."""

import argparse
import fnmatch
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jscale.checkpoint import steps
from jscale.checkpoint.note import Damaged, Note
from jscale.checkpoint.sizes import age, readable
from jscale.errors import CheckpointError
from jscale.launch.commands.arguments import Parser
from jscale.launch.commands.tables import show


def main(arguments: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit status.

    Raises:
        CheckpointError: there is no such run or step (the caller prints the sentence).
    """
    options = _parser().parse_args(arguments)
    return options.command(_checkpoints(options.run), options)


def list_steps(folder: Path, options: argparse.Namespace) -> int:
    """Prints every step, whole or not, with what can be told without reading its arrays."""
    show(
        ("step", "saved", "size", "arrays", "state", "data"),
        [*(_row(folder, step) for step in steps.folders(folder)), *_leftovers(folder)],
        numbers=("step", "size", "arrays"),
    )
    return 0


def inspect(folder: Path, options: argparse.Namespace) -> int:
    """Prints the arrays of one step, the newest by default, by name."""
    step = _chosen(folder, options.step)
    note = _read(folder, step)
    pattern = options.param or "*"
    chosen = {n: a for n, a in note.arrays.items() if pattern in n or fnmatch.fnmatch(n, pattern)}
    if not chosen:
        raise CheckpointError(f"no array of step {step} matches {pattern!r}")
    rows = [(n, a.described, readable(a.bytes), a.fingerprint) for n, a in chosen.items()]
    show(("array", "type", "size", "fingerprint"), rows, numbers=("size",))
    total = readable(sum(a.bytes for a in chosen.values()))
    print(f"step {step}: {len(chosen)} of {len(note.arrays)} arrays, {total}")
    print(f"noted: {json.dumps(dict(note.run), sort_keys=True)}")
    print(f"written by: {', '.join(f'{k} {v}' for k, v in note.versions.items())}")
    return 0


def verify(folder: Path, options: argparse.Namespace) -> int:
    """Reads every array of one step or of all, and compares fingerprints; 66 if any is damaged."""
    from jscale.checkpoint.verify import damage  # with NumPy: no device is touched

    chosen = steps.folders(folder) if options.step is None else [_chosen(folder, options.step)]
    if not chosen:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    sound = True
    for step in chosen:
        bad = damage(folder, step)
        for name, reason in bad.items():
            print(f"step {step}: {repr(name) + ' ' if name else ''}{reason}")
        if not bad:
            note = steps.read(folder, step)
            print(f"step {step}: sound, {len(note.arrays)} arrays, {readable(note.bytes)}")
        sound = sound and not bad
    return 0 if sound else CheckpointError.status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jscale ckpt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="list|inspect|verify")
    for name, command in (("list", list_steps), ("inspect", inspect), ("verify", verify)):
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.add_argument("run", type=Path, help="the run's folder, or its checkpoints folder")
        sub.set_defaults(command=command)
        if command is not list_steps:
            sub.add_argument("--step", type=int, help="which step")
        if command is inspect:
            sub.add_argument("--param", metavar="PATTERN", help="part of a name, or a glob")
    return parser


def _checkpoints(run: Path) -> Path:
    """The folder of steps that is meant by a run's folder or by itself."""
    if not run.is_dir():
        raise CheckpointError(f"there is no run in {run}")
    inside = run / "checkpoints"
    if not inside.is_dir() and not steps.folders(run):
        raise CheckpointError(f"there is no checkpoint in {run}")
    return inside if inside.is_dir() else run


def _chosen(folder: Path, step: int | None) -> int:
    known = steps.folders(folder)
    if step is None:
        whole = steps.whole(folder)
        if not whole:
            raise CheckpointError(f"no step of {folder} is complete")
        return max(whole)
    if step not in known:
        there = ", ".join(map(str, known)) or "none"
        raise CheckpointError(f"{folder} has no step {step}; the steps there are: {there}")
    return step


def _read(folder: Path, step: int) -> Note:
    try:
        return steps.read(folder, step)
    except Damaged as reason:
        raise CheckpointError(f"step {step} of {folder} is damaged: {reason}") from None


def _row(folder: Path, step: int) -> tuple[str, ...]:
    path = folder / str(step)
    try:
        note = steps.read(folder, step)
    except Damaged as reason:
        return str(step), "", readable(_size(path)), "", f"damaged: {reason}", ""
    except CheckpointError as error:
        return str(step), "", readable(_size(path)), "", str(error), ""
    saved = f"{age(time.time() - note.saved)} ago"
    arrays, size = str(len(note.arrays)), readable(_size(path))
    return str(step), saved, size, arrays, "complete", _position(note)


def _position(note: Note) -> str:
    """Where the run stood in its data, as far as the note tells."""
    data = note.run.get("data", "")
    if isinstance(data, dict) and "position" in data:
        data = data["position"]
    return data if isinstance(data, str) else json.dumps(data)


def _leftovers(folder: Path) -> Iterator[tuple[str, ...]]:
    for path in sorted(folder.glob(f"*{steps.TEMPORARY}")):
        step = path.name.removesuffix(steps.TEMPORARY)
        yield step, "", readable(_size(path)), "", "being written, or left by a killed run", ""
    for path in sorted(p for p in (folder / "damaged").glob("*") if p.is_dir()):
        yield path.name, "", readable(_size(path)), "", f"set aside in {path}", ""


def _size(path: Path) -> int:
    """Bytes on the disk; files that vanish meanwhile count nothing."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total
