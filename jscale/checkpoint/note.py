"""The note of a step: what its arrays must be, and what the run wrote down, under one checksum.

It lies beside the arrays in the same atomic unit (`<step>/note/note.json`), and a step without a
readable and complete note does not count. Reading it needs neither JAX nor the model.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the names bfloat16, float8_e4m3fn, ...
import numpy as np

from jscale.errors import CheckpointError

FORMAT = 1
FILE = "note.json"


class Damaged(Exception):
    """A step that cannot be used; the message says why."""


@dataclass(frozen=True)
class ArrayNote:
    """What is known of one stored array."""

    dtype: str
    shape: tuple[int, ...]
    fingerprint: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def described(self) -> str:
        """
        >>> ArrayNote("bfloat16", (4, 8), "").described
        'bfloat16[4 8]'
        """
        return f"{self.dtype}[{' '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Note:
    """A step's contents: every array, and `run`, what the training loop wrote with it."""

    step: int
    saved: float  # seconds since 1970
    versions: Mapping[str, str]
    arrays: Mapping[str, ArrayNote]
    run: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays.values())


def encode(note: Note) -> str:
    """The text of a note's file; raises TypeError or ValueError if `run` is not plain JSON."""
    arrays = {name: [a.dtype, list(a.shape), a.fingerprint] for name, a in note.arrays.items()}
    body = {
        "format": FORMAT,
        "step": note.step,
        "saved": note.saved,
        "versions": dict(note.versions),
        "arrays": arrays,
        "run": json.loads(json.dumps(dict(note.run), allow_nan=False)),
    }
    return json.dumps({"checksum": _checksum(body), "body": body}, indent=1)


def decode(text: str) -> Note:
    """Reads a note back.

    Raises:
        Damaged: the text is not a whole note, or a letter of it has changed.
        CheckpointError: it was written by a later jscale.
    """
    try:
        file = json.loads(text)
        body, checksum = file["body"], file["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged("its note is not readable") from error
    if _checksum(body) != checksum:
        raise Damaged("its note has changed since it was written")
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"the checkpoint has format {body['format']} and this jscale reads format {FORMAT}; "
            f"use the jscale that wrote it, {body['versions'].get('jscale', 'unknown')}"
        )
    arrays = {name: ArrayNote(d, tuple(s), f) for name, (d, s, f) in body["arrays"].items()}
    return Note(body["step"], body["saved"], body["versions"], arrays, body["run"])


def read(step: Path) -> Note:
    """The note of a step's folder.

    Raises:
        Damaged: there is none, or it is not whole.
        CheckpointError: it may not be read, or was written by a later jscale.
    """
    path = step / "note" / FILE
    try:
        return decode(path.read_text())
    except FileNotFoundError:
        raise Damaged("it has no note") from None
    except UnicodeDecodeError:
        raise Damaged("its note is not readable") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _checksum(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
