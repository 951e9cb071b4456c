"""samples.txt: what the model wrote, step by step, each step once."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

HEADER = re.compile(rb"^--- step (\d+): ", re.MULTILINE)
LIKE_HEADER = re.compile(r"^--- step", re.MULTILINE)


def write_samples(path: Path, step: int, texts: Sequence[tuple[str, str]]) -> None:
    """Add the (prompt, what there is to read) pairs of a step; what the file has of this step or of
    later ones, left by a process that died, is taken out. Without pairs it is only taken out."""
    size = path.stat().st_size if path.exists() else 0
    keep = length_before(path.read_bytes(), step) if size else 0
    with path.open("ab") as file:
        if keep < size:
            file.truncate(keep)
        file.write("".join(block(step, *pair) for pair in texts).encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


def length_before(content: bytes, step: int) -> int:
    """The bytes before the first sample of this step or a later one.

    >>> length_before(b"--- step 5: 'a'\\nab\\n--- step 10: 'a'\\nac\\n", 10)
    19
    """
    starts = (found.start() for found in HEADER.finditer(content) if int(found[1]) >= step)
    return next(starts, len(content))


def block(step: int, prompt: str, text: str) -> str:
    """One sample with its header; a line that looks like a header is moved in by a space.

    >>> block(5, "a", "ab")
    "--- step 5: 'a'\\nab\\n"
    """
    text = LIKE_HEADER.sub(" --- step", text)
    return f"--- step {step}: {prompt!r}\n{text}\n"
