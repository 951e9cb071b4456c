"""Strict restoring: the newest sound step, onto any mesh, checked array by array."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jscale.checkpoint import fingerprint, note, orbax_border, steps, verify
from jscale.checkpoint.agreement import anywhere, first_decides
from jscale.checkpoint.compare import differences
from jscale.checkpoint.names import named_leaves, rebuild
from jscale.checkpoint.note import Damaged, Note
from jscale.checkpoint.steps import SetAside
from jscale.errors import CheckpointError

Wanted = Mapping[str, jax.ShapeDtypeStruct]
Away = Callable[[Path, int, str], SetAside]


@dataclass(frozen=True)
class Restored:
    """A state, the step it was saved at, what the run noted with it, and the steps passed over."""

    step: int
    state: Any
    note: Mapping[str, Any]
    set_aside: tuple[SetAside, ...] = ()


def leave(folder: Path, step: int, reason: str) -> SetAside:
    """Passes a damaged step over without touching it."""
    return SetAside(step, reason, folder / str(step))


def restore(folder: Path, like: PyTree, step: int | None = None, away: Away = leave) -> Restored:
    """The newest sound step of a folder, or the given one, in the shape and layout of `like`.

    `like` is a tree of `jax.ShapeDtypeStruct` with shardings (arrays serve as well), on any mesh
    and any number of processes; all processes must call it. Every array's fingerprint is checked.
    A damaged step is passed over (`away` says how) and the one before is used; nothing is written
    with the default `away`, so another run's checkpoints may be read while it trains.

    Raises:
        CheckpointError: there is no sound step; the given one is missing or damaged; arrays are
            missing, extra, of another shape or dtype (a table is in the message).
    """
    wanted = {name: _template(name, leaf) for name, leaf in named_leaves(like).items()}
    passed: list[SetAside] = []
    for candidate in _candidates(folder, step):
        found = _attempt(folder, candidate, wanted)
        if isinstance(found, tuple):
            values, notes = found
            return Restored(candidate, rebuild(like, values), notes.run, tuple(passed))
        if step is not None:
            raise CheckpointError(f"step {step} of {folder} is damaged: {found}")
        passed.append(_pass_over(folder, candidate, found, away))
    raise CheckpointError(_nothing(folder, passed))


def _template(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    assert getattr(leaf, "sharding", None) is not None, f"{name} is wanted without a sharding"
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _candidates(folder: Path, step: int | None) -> list[int]:
    """Newest first, or the given one alone."""
    known = first_decides(lambda: steps.folders(folder))
    if step is None:
        return known[::-1]
    if step not in known:
        there = ", ".join(map(str, known)) or "none"
        raise CheckpointError(f"{folder} has no step {step}; the steps there are: {there}")
    return [step]


def _attempt(folder: Path, step: int, wanted: Wanted) -> tuple[dict[str, jax.Array], Note] | str:
    """The arrays of a step and its note, or why it is damaged."""
    read = first_decides(lambda: _read(folder, step))
    if "damaged" in read:
        return read["damaged"]
    notes = note.decode(read["note"])
    table = differences(notes.arrays, wanted)
    if table:
        raise CheckpointError(f"step {step} of {folder} is of another model or optimizer: {table}")
    path = folder / str(step)
    values, trouble = _load(orbax_border.load, path, wanted, notes)
    if not anywhere(trouble is not None):
        return values, notes
    # Only what a second, independent reading finds bad is damaged: a step is not moved for an
    # accelerator without memory, and whole arrays are not given up for a file beside them.
    bad = first_decides(lambda: verify.damage(folder, step))
    if bad:
        return describe(bad)
    values, trouble = _load(orbax_border.load_directly, path, wanted, notes)
    if anywhere(trouble is not None):
        raise CheckpointError(
            f"step {step} of {folder} is sound but could not be restored: "
            f"{trouble or 'another process failed'}"
        )
    return values, notes


def _read(folder: Path, step: int) -> dict[str, str]:
    try:
        return {"note": note.encode(steps.read(folder, step))}
    except Damaged as reason:
        return {"damaged": str(reason)}


def _load(
    load: Callable[[Path, Wanted], dict[str, jax.Array]], path: Path, wanted: Wanted, notes: Note
) -> tuple[dict[str, jax.Array], str | None]:
    """The arrays and what went wrong with them on this process, if anything did."""
    try:
        values = load(path, wanted)
    except orbax_border.Unreadable as error:  # `verify` finds out whether the step is to blame
        return {}, str(error)
    prints = fingerprint.start(values).read()
    bad = [name for name, array in notes.arrays.items() if prints[name] != array.fingerprint]
    return values, f"wrong fingerprint of {', '.join(bad)}" if bad else None


def describe(bad: Mapping[str, str]) -> str:
    """Damage as one line: the first arrays by name, and how many more."""
    told = [f"{name!r} {reason}" if name else reason for name, reason in bad.items()]
    more = f" and {len(told) - 3} more arrays" if len(told) > 3 else ""
    return "; ".join(told[:3]) + more


def _pass_over(folder: Path, step: int, reason: str, away: Away) -> SetAside:
    def move() -> list[str]:
        return [str(away(folder, step, reason).path)]

    return SetAside(step, reason, Path(first_decides(move)[0]))


def _nothing(folder: Path, passed: list[SetAside]) -> str:
    if not passed:
        return f"there is no checkpoint in {folder}"
    reasons = "; ".join(f"step {p.step}: {p.reason} (now in {p.path})" for p in passed)
    return f"no step of {folder} is sound: {reasons}"
