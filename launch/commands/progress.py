"""How far a command has come, told in place on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """A callback of (done, all) that shows them in place, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    yield lambda done, total: print(
        f"\r{title}: {done} of {total}", end="", file=sys.stderr, flush=True
    )
    print(file=sys.stderr)
