"""Reads every array of a step and compares its fingerprint, without the model or a mesh."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from jscale.checkpoint import orbax_border, steps
from jscale.checkpoint.hostprint import host_fingerprint
from jscale.checkpoint.note import ArrayNote, Damaged
from jscale.errors import CheckpointError

# What says that the array could not be reached, not that it is bad.
NOT_DAMAGE = (
    "PERMISSION_DENIED",
    "Permission denied",
    "UNAVAILABLE",
    "RESOURCE_EXHAUSTED",
    "MemoryError",
    "Unable to allocate",
)


def damage(folder: Path, step: int) -> dict[str, str]:
    """What is wrong with a step, by the name of the array; empty if all is well.

    Damage that is not of one array has the name "". One array at a time is held in memory.

    Raises:
        CheckpointError: an array cannot be reached (permission, memory), or the format is a
            later one.
    """
    try:
        note = steps.read(folder, step)
    except Damaged as reason:
        return {"": str(reason)}
    return dict(_damaged(folder / str(step), note.arrays))


def _damaged(path: Path, arrays: Mapping[str, ArrayNote]) -> Iterator[tuple[str, str]]:
    for name, array in arrays.items():
        reason = _check(path, name, array)
        if reason:
            yield name, reason


def _check(path: Path, name: str, array: ArrayNote) -> str:
    try:
        values = orbax_border.load_on_host(path, name, array.shape, array.dtype)
    except orbax_border.Unreadable as error:
        if any(sign in str(error) for sign in NOT_DAMAGE):
            raise CheckpointError(f"{name!r} in {path} cannot be read: {error}") from error
        return f"cannot be read: {error}"
    found = host_fingerprint(values)
    return "" if found == array.fingerprint else f"has fingerprint {found}, not {array.fingerprint}"
