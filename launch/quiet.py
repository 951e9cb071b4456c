"""Keeps XLA's log lines, which speak to its authors, out of what a person reads."""

import os


def quiet() -> None:
    """Let XLA's native code log errors alone, unless the user has chosen a level. To be called
    before JAX is imported: the level is read when the library is loaded."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
