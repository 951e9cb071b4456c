"""What differs between the arrays of a checkpoint and those that are wanted."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jscale.checkpoint.note import ArrayNote

LINES = 20  # of differences that are printed, before only their number is


def differences(stored: Mapping[str, ArrayNote], wanted: Mapping[str, Any]) -> str:
    """A table of the arrays that are missing, extra, of another shape or dtype; "" if none is.

    `wanted` has shapes and dtypes by name. Nothing is cast and nothing is left out silently.
    """
    want = {
        name: ArrayNote(jnp.dtype(w.dtype).name, tuple(w.shape), "") for name, w in wanted.items()
    }
    have = {name: array.described for name, array in stored.items()}
    need = {name: array.described for name, array in want.items()}
    rows = [
        (name, have.get(name, "absent"), need.get(name, "not wanted"), _hint(name, have, need))
        for name in sorted(have.keys() | need.keys())
        if have.get(name) != need.get(name)
    ]
    return _table(rows) if rows else ""


def _hint(name: str, have: Mapping[str, str], need: Mapping[str, str]) -> str:
    """The stored array that may be meant by a wanted one, among those that nobody asked for."""
    if name in have:
        return ""
    near = difflib.get_close_matches(name, have.keys() - need.keys(), n=1, cutoff=0.6)
    return f"is it {near[0]!r}?" if near else ""


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    count = f"{len(rows)} array{'s differ' if len(rows) > 1 else ' differs'}"
    shown = [("name", "in the checkpoint", "wanted", ""), *rows[:LINES]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = [
        "  " + "  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3]])
        for row in shown
    ]
    if len(rows) > LINES:
        lines.append(f"  and {len(rows) - LINES} more")
    return "\n".join([count, *(line.rstrip() for line in lines)])
