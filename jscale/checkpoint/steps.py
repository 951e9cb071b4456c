"""The folder of a run's steps: which are whole, and how one is set aside or removed.

<folder>/<step>/                    one step, committed by a rename
<folder>/<step>.orbax-checkpoint-tmp/  a step being written, or left by a killed process
<folder>/damaged/<step>/            set aside, never deleted; damaged/<step>.txt says why
<folder>/deleting/<step>/           on its way out
<folder>/lock                       who writes here
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from jscale.checkpoint import note as notes
from jscale.checkpoint.note import Damaged, Note
from jscale.errors import CheckpointError

MARKER = "commit_success.txt"
TEMPORARY = ".orbax-checkpoint-tmp"


@dataclass(frozen=True)
class SetAside:
    """A damaged step: why, and where it lies now (in its old place if nothing may be moved)."""

    step: int
    reason: str
    path: Path


def folders(folder: Path) -> list[int]:
    """The steps that have a folder, whole or not, in ascending order.

    Raises:
        CheckpointError: the folder may not be read.
    """
    return sorted(
        int(name) for name in _names(folder) if _is_step(name) and (folder / name).is_dir()
    )


def read(folder: Path, step: int) -> Note:
    """The note of a step that is committed and complete, as far as can be seen without its arrays.

    Raises:
        Damaged: something is missing or the note is not whole.
        CheckpointError: it may not be read, or was written by a later jscale.
    """
    path = folder / str(step)
    if not _names(path):
        raise Damaged("its folder is empty")
    _committed(path)
    note = notes.read(path)
    if note.step != step:
        raise Damaged(f"its note is that of step {note.step}")
    _committed(path / "note")
    if note.bytes:
        _committed(path / "state")
    return note


def _committed(part: Path) -> None:
    if not (part / MARKER).is_file():
        raise Damaged(f"{MARKER} is missing in {part.name}: it was never finished")


def whole(folder: Path) -> dict[int, Note]:
    """The steps that are committed and complete, ascending, with their notes."""
    found = {}
    for step in folders(folder):
        try:
            found[step] = read(folder, step)
        except Damaged:
            continue  # named by `restore` and `jscale ckpt list`
    return found


def set_aside(folder: Path, step: int, reason: str) -> SetAside:
    """Moves a damaged step out of the way, next to a line that says why; nothing is deleted."""
    target = _free_name(folder / "damaged" / str(step))
    try:
        target.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
    except OSError as error:
        raise CheckpointError(
            f"step {step} of {folder} is damaged ({reason}) and cannot be moved to {target}: "
            f"{error.strerror}"
        ) from error
    with contextlib.suppress(OSError):  # a full disk; the caller has the reason as well
        target.with_name(f"{target.name}.txt").write_text(f"step {step}: {reason}\n")
    return SetAside(step, reason, target)


def delete(folder: Path, step: int) -> None:
    """Removes a step: first out of sight by one rename, so that no half of it is ever seen."""
    trash = folder / "deleting"
    try:
        trash.mkdir(exist_ok=True)
        (folder / str(step)).rename(_free_name(trash / str(step)))
        shutil.rmtree(trash)
    except OSError as error:
        raise CheckpointError(
            f"the old step {step} of {folder} cannot be deleted: {error.strerror}"
        ) from error


def sweep(folder: Path) -> None:
    """Removes what a killed process left half written or half deleted. For the writer alone."""
    for path in (*folder.glob(f"*{TEMPORARY}*"), *folder.glob("deleting")):
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise CheckpointError(
                f"{path} was left half written and cannot be removed: {error.strerror}"
            ) from error


def _names(folder: Path) -> list[str]:
    """What lies in a folder; nothing if it does not exist."""
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _free_name(path: Path) -> Path:
    """The path, or with .2, .3, ... if there is one already."""
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}.{count}")
    return candidate
