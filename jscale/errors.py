"""What went wrong, said to the person who can mend it.

A `UserError` is one clear sentence (what is wrong, where, what would be right) and an exit status;
the command line prints the sentence and no traceback. Anything else that escapes is a bug of ours.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend. `status` is the exit status of the command line."""

    status = 64


class ConfigError(UserError):
    """A recipe, an override, a mesh or a rule is wrong (exit status 64)."""

    status = 64


class DataError(UserError):
    """A source, a tokenizer or a token cache is missing or damaged (exit status 65)."""

    status = 65


class CheckpointError(UserError):
    """A checkpoint or a run folder cannot be used (exit status 66)."""

    status = 66


class NumericError(UserError):
    """Training diverged and was stopped (exit status 72)."""

    status = 72


class PeerError(UserError):
    """Another process of the job has ended, so that this one cannot go on (exit status 71)."""

    status = 71


class DeviceMemoryError(UserError):
    """A program needs more memory than a device has (exit status 73)."""

    status = 73


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint to append to an error message: the nearest choices, or all of them.

    >>> did_you_mean("stpes", ["steps", "seed"])
    "did you mean 'steps'?"
    >>> did_you_mean("x", ["data", "fsdp"])
    'choose from data, fsdp'
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    return f"choose from {', '.join(known)}" if known else "there is nothing to choose from"
